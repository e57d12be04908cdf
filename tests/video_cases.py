"""A corpus of odd video files, made by FFmpeg's command: containers x codecs x oddities.

`tests/video_judge.py` makes the files and says what is in them; `tests/test_video_corpus.py` and `tests/all_videos.py` hold both
backends against that.
"""

from __future__ import annotations

import dataclasses

NUM_FRAMES = 36


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One file.

    `steps`: the arguments of each run of the command; {out} is the file and {tmp} a folder. `spec`: options of the FrameSpec.
    `judged`: video filters with which the command shows what is right, and `squared`: its frames are made square by Pillow.
    `levels` and `mean_levels`: by how many of 256 levels pixels may differ, for the reason `why`.
    """

    container: str
    codec: str
    oddity: str
    steps: tuple[str, ...]
    spec: tuple[tuple[str, object], ...] = ()
    judged: str = ""
    squared: bool = False
    levels: int = 0
    mean_levels: float = 0.0
    why: str = ""

    @property
    def name(self) -> str:
        words = f"{self.container} {self.codec} {self.oddity}".split()
        return "_".join(word.replace("/", ":").strip(",") for word in words)


def pictures(size: str = "160x96", rate: str = "24", seconds: float = NUM_FRAMES / 24, then: str = "") -> str:
    """Input arguments: a test picture in which every frame differs, the hue too: in a small picture little else moves."""
    return f"-f lavfi -i testsrc2=size={size}:rate={rate}:duration={seconds},hue=h=10*n{',' + then if then else ''}"


EVEN = pictures()
X264 = "-c:v libx264 -preset veryfast -crf 18 -g 12"
X265 = "-c:v libx265 -preset ultrafast -crf 18"
VPX = "-deadline realtime -cpu-used 8 -g 12 -b:v 2M"
HIDDEN = "-auto-alt-ref 1 -lag-in-frames 16 -cpu-used 5 -b:v 2M -g 30"
CLOSED = "-x265-params keyint=12:no-open-gop=1:log-level=none"
ENCODERS = {
    "H.264": f"{X264} -pix_fmt yuv420p -bf 0",
    "H.264 B-frames": f"{X264} -pix_fmt yuv420p -bf 3",
    "H.264 open GOP": f"{X264} -pix_fmt yuv420p -bf 3 -x264-params open-gop=1:scenecut=0",
    "H.264 10 bit": f"{X264} -pix_fmt yuv420p10le",
    "H.264 4:2:2": f"{X264} -pix_fmt yuv422p",
    "H.264 4:4:4": f"{X264} -pix_fmt yuv444p",
    "H.264 RGB": "-c:v libx264rgb -preset veryfast -crf 18 -g 12 -pix_fmt rgb24",
    "HEVC open GOP": f"{X265} -pix_fmt yuv420p -x265-params keyint=12:log-level=none",
    "HEVC": f"{X265} -pix_fmt yuv420p {CLOSED}",
    "HEVC 10 bit": f"{X265} -pix_fmt yuv420p10le {CLOSED}",
    "VP8": f"-c:v libvpx {VPX}",
    "VP8 hidden frames": f"-c:v libvpx {HIDDEN}",
    "VP8 alpha": f"-c:v libvpx {VPX} -pix_fmt yuva420p -auto-alt-ref 0",
    "VP9": f"-c:v libvpx-vp9 {VPX} -pix_fmt yuv420p",
    "VP9 hidden frames": f"-c:v libvpx-vp9 {HIDDEN} -pix_fmt yuv420p",
    "VP9 10 bit": f"-c:v libvpx-vp9 {VPX} -pix_fmt yuv420p10le",
    "VP9 alpha": f"-c:v libvpx-vp9 {VPX} -pix_fmt yuva420p -auto-alt-ref 0",
    "AV1": "-c:v libsvtav1 -preset 12 -crf 30 -g 12 -pix_fmt yuv420p",
    "AV1 10 bit": "-c:v libsvtav1 -preset 12 -crf 30 -g 12 -pix_fmt yuv420p10le",
    "MPEG-4": "-c:v mpeg4 -g 12 -b:v 4M",
    "MPEG-4 B-frames": "-c:v mpeg4 -g 12 -bf 2 -b:v 4M",
    "MPEG-4 Xvid": "-c:v libxvid -g 12 -bf 2 -b:v 4M",
    "MPEG-2": "-c:v mpeg2video -g 12 -bf 2 -b:v 4M",
    "MPEG-1": "-c:v mpeg1video -g 12 -bf 2 -b:v 4M",
    "MJPEG": "-c:v mjpeg -q:v 3 -pix_fmt yuvj420p",
    "ProRes": "-c:v prores_ks -profile:v 2",
    "ProRes alpha": "-c:v prores_ks -profile:v 4 -pix_fmt yuva444p10le",
    "DNxHR": "-c:v dnxhd -profile:v dnxhr_lb -pix_fmt yuv422p",
    "DV": "-c:v dvvideo -pix_fmt yuv420p",
    "FFV1": "-c:v ffv1 -pix_fmt yuv420p",
    "PNG": "-c:v png -pix_fmt rgb24",
    "Animation": "-c:v qtrle -pix_fmt rgb24",
    "GIF": "-c:v gif",
    "FLV1": "-c:v flv -g 12 -b:v 4M",
    "WMV2": "-c:v wmv2 -g 12 -b:v 4M",
    "MS-MPEG-4": "-c:v msmpeg4 -g 12 -b:v 4M",
    "Theora": "-c:v libtheora -q:v 8 -g 12",
    "H.263": "-c:v h263 -g 12 -b:v 4M",
    "raw": "-c:v rawvideo -pix_fmt yuv420p",
    "HuffYUV": "-c:v huffyuv -pix_fmt yuv422p",
}
ONLY_AT = {"DNxHR": pictures("320x180"), "DV": pictures("720x576", "25", 0.4), "H.263": pictures("176x144")}
# Where the chroma of H.264 and HEVC is, which the command does not go by unless told.
LEFT = "scale=in_chroma_loc=left:interl=-1,format=rgb24"
PLAIN = {
    "mp4": (
        *("H.264", "H.264 B-frames", "H.264 open GOP", "H.264 10 bit", "H.264 4:2:2", "H.264 4:4:4", "H.264 RGB", "HEVC"),
        *("HEVC open GOP", "HEVC 10 bit", "VP9", "AV1", "AV1 10 bit", "MPEG-4", "MPEG-4 B-frames", "MPEG-2", "MJPEG"),
    ),
    "mov": ("H.264 B-frames", "HEVC", "ProRes", "ProRes alpha", "DNxHR", "MJPEG", "PNG", "Animation"),
    "mkv": (
        *("H.264", "H.264 open GOP", "HEVC open GOP", "VP8", "VP9", "AV1", "MPEG-4 B-frames", "MPEG-2", "FFV1", "Theora"),
        *("ProRes", "MJPEG"),
    ),
    "webm": ("VP8", "VP8 hidden frames", "VP8 alpha", "VP9", "VP9 hidden frames", "VP9 10 bit", "VP9 alpha", "AV1"),
    "avi": (
        *(
            "H.264",
            "H.264 B-frames",
            "MPEG-4",
            "MPEG-4 B-frames",
            "MPEG-4 Xvid",
            "MJPEG",
            "MS-MPEG-4",
            "raw",
            "HuffYUV",
            "DV",
        ),
    ),
    "ts": ("H.264", "H.264 B-frames", "H.264 open GOP", "HEVC open GOP", "MPEG-2"),
    "flv": ("H.264", "H.264 B-frames", "FLV1"),
    "mpg": ("MPEG-1", "MPEG-2"),
    "3gp": ("H.263", "H.264"),
    "wmv": ("WMV2",),
    "ogv": ("Theora",),
    "gif": ("GIF",),
    "h264": ("H.264", "H.264 B-frames"),
    "ivf": ("VP8", "VP9", "AV1"),
}


def odd(container: str, codec: str, oddity: str, *steps: str, **options: object) -> Case:
    """`steps` as in `Case`, where {codec} is the codec's encoder."""
    filled = tuple(step.replace("{codec}", ENCODERS[codec]) for step in steps)
    if "10 bit" in codec and codec.startswith(("H.264", "HEVC")):
        options.setdefault("judged", LEFT)
    return Case(container=container, codec=codec, oddity=oddity, steps=filled, **options)  # type: ignore[arg-type]


def plain() -> list[Case]:
    every = [(container, codec) for container, codecs in PLAIN.items() for codec in codecs]
    return [odd(container, codec, "", f"{ONLY_AT.get(codec, EVEN)} {{codec}} {{out}}") for container, codec in every]


FREE = " -fps_mode vfr -enc_time_base 1/1000"
VARIABLE = pictures(then="setpts='if(lt(N,12),N/24,(N-11)/2)/TB',settb=1/1000") + FREE
LATE = pictures(then="setpts=PTS+3/10/TB,settb=1/1000") + FREE
PAUSE = pictures(then="setpts='(N/24+if(gt(N,17),8))/TB',settb=1/1000") + FREE
JITTER = pictures(then="setpts='(N/24+0.015*mod(N*7,3))/TB',settb=1/1000") + FREE


def of_time() -> list[Case]:
    bf = "H.264 B-frames"
    h264 = [(container, codec) for container in ("mp4", "mov", "mkv", "ts", "flv") for codec in ("H.264", bf)]
    others = [("mkv", "VP8"), ("webm", "VP9"), ("webm", "AV1"), ("gif", "GIF"), ("mp4", "HEVC"), ("mp4", "MPEG-4")]
    late = [("mkv", bf), ("webm", "VP9"), ("mp4", bf), ("ts", "H.264"), ("flv", "H.264")]
    made = [
        *(odd(container, codec, "variable rate", f"{VARIABLE} {{codec}} {{out}}") for container, codec in [*h264, *others]),
        *(odd(container, codec, "starts at 0.3 s", f"{LATE} {{codec}} {{out}}") for container, codec in late),
        *(
            odd(container, bf, "8 s without a frame", f"{PAUSE} {{codec}} {{out}}")
            for container in ("mp4", "mkv", "flv", "ts")
        ),
        *(odd(container, bf, "uneven by a third", f"{JITTER} {{codec}} {{out}}") for container in ("mp4", "mkv")),
    ]
    for rate, name, seconds, containers in (
        ("10", "10 a second", 1.5, ("mp4", "mkv", "avi", "flv")),
        ("120", "120 a second", 0.3, ("mp4", "mkv", "avi", "ts")),
        ("24000/1001", "23.976 a second", 1.5, ("mp4", "mkv", "avi", "ts")),
        ("1", "1 a second", 12.0, ("mp4", "mkv")),
    ):
        made += [odd(c, bf, name, f"{pictures(rate=rate, seconds=seconds)} {{codec}} {{out}}") for c in containers]
    for container, codec, count in (
        *(("mp4", "H.264", 1), ("mp4", bf, 2), ("mkv", "H.264", 1), ("webm", "VP9", 2), ("avi", "MPEG-4", 2)),
        *(("gif", "GIF", 1), ("mp4", "HEVC", 3)),
    ):
        step = f"{EVEN} {{codec}} -frames:v {count} {{out}}"
        made.append(odd(container, codec, f"{count} frames", step, spec=(("min_frames", 1),)))
    return made


def of_structure() -> list[Case]:
    bf, copy = "H.264 B-frames", "-map 0 -c copy {out}"
    sound = "-f lavfi -i sine=frequency=440:duration={} {{codec}} -c:a {} {{out}}"
    cut = (f"{EVEN} {{codec}} {{tmp}}/a.mp4", f"-ss 0.7 -i {{tmp}}/a.mp4 {copy}")
    cover = "-f lavfi -i color=red:s=64x64 -frames:v 1 {tmp}/cover.png"
    covered = "-i {tmp}/a.mp4 -i {tmp}/cover.png -map 0 -map 1 -c copy -disposition:v:1 attached_pic {out}"
    return [
        odd("mp4", bf, "edit list cuts", *cut),
        odd("mov", "HEVC", "edit list cuts", *cut),
        odd("mp4", bf, "fragmented", f"{EVEN} {{codec}} -movflags frag_keyframe+empty_moov {{out}}"),
        odd("mp4", "HEVC", "fragmented", f"{EVEN} {{codec}} -movflags frag_keyframe+empty_moov+default_base_moof {{out}}"),
        odd("mp4", bf, "index first", f"{EVEN} {{codec}} -movflags faststart {{out}}"),
        odd("mp4", bf, "negative offsets", f"{EVEN} {{codec}} -movflags negative_cts_offsets {{out}}"),
        odd("mkv", bf, "live, no index", f"{EVEN} {{codec}} -live 1 -f matroska {{out}}"),
        odd("mkv", "VP9", "starts inside a group", f"{EVEN} {{codec}} {{tmp}}/a.mkv", f"-ss 0.6 -i {{tmp}}/a.mkv {copy}"),
        odd("ts", bf, "two clocks", f"{EVEN} {{codec}} {{tmp}}/a.ts", f"-i concat:{{tmp}}/a.ts|{{tmp}}/a.ts {copy}"),
        odd("ts", "MPEG-2", "clock at 26.5 hours", f"{EVEN} {{codec}} -output_ts_offset 95442 {{out}}"),
        odd("mp4", bf, "longer sound", f"{EVEN} {sound.format(4, 'aac')}"),
        odd("mkv", "VP9", "sound first", f"-itsoffset 0.5 {EVEN} {sound.format(1, 'libopus')}"),
        odd("ts", bf, "sound first", f"-itsoffset 0.5 {EVEN} {sound.format(1, 'mp2')}"),
        odd("mp4", "H.264", "two pictures", f"{pictures('64x64')} {EVEN} -map 0 -map 1 {{codec}} {{out}}"),
        odd("mp4", "H.264", "cover picture", f"{EVEN} {{codec}} {{tmp}}/a.mp4", cover, covered),
    ]


def of_size() -> list[Case]:
    made = [
        odd(container, codec, size, f"{pictures(size)} {{codec}} {{out}}")
        for container, codec, size in (
            *(("mp4", "H.264", "48x96"), ("mp4", "H.264", "24x16"), ("mp4", "H.264", "72x50"), ("mp4", "HEVC", "48x96")),
            *(("webm", "VP9", "161x97"), ("webm", "VP8", "161x97"), ("mp4", "H.264 4:4:4", "161x97")),
            *(("avi", "MPEG-4", "161x97"), ("mp4", "MPEG-4", "48x98"), ("mkv", "FFV1", "33x31"), ("webm", "VP9", "48x96")),
            *(("mp4", "H.264", "1280x720"), ("mp4", "H.264", "16x400"), ("mp4", "H.264", "640x16")),
        )
    ]
    for container, codec in (
        *(("mp4", "H.264"), ("mkv", "H.264"), ("ts", "H.264"), ("mkv", "H.264 B-frames"), ("mp4", "HEVC"), ("mkv", "HEVC")),
    ):
        for name, first, second in (
            ("gets smaller", "160x96", "80x48"),
            ("gets larger", "80x48", "160x96"),
            ("gets square", "160x96", "96x96"),
        ):
            parts = [
                f"{pictures(size, seconds=0.75)} {{codec}} {{tmp}}/{part}.ts" for part, size in (("a", first), ("b", second))
            ]
            made.append(odd(container, codec, name, *parts, "-i concat:{tmp}/a.ts|{tmp}/b.ts -c copy {out}"))
    turn = "-display_rotation 90 -i {tmp}/a.mp4 -map 0 -c copy {out}"
    for container, codec, aspect in (
        *(("mp4", "H.264", "4/3"), ("mp4", "H.264", "3/4"), ("mkv", "VP9", "64/45"), ("ts", "MPEG-2", "16/15")),
        *(("avi", "MPEG-4", "12/11"), ("webm", "VP8", "2/1"), ("mp4", "HEVC", "4/3")),
    ):
        step, words = f"{pictures(then=f'setsar={aspect}')} {{codec}} {{out}}", f"pixels of {aspect.replace('/', ' to ')}"
        made += [
            odd(container, codec, f"{words} as stored", step, spec=(("square_pixels", False),)),
            odd(container, codec, f"{words} made square", step, squared=True),
        ]
    made.append(
        odd(
            "mp4",
            "H.264",
            "pixels of 4 to 3, turned",
            f"{pictures(then='setsar=4/3')} {{codec}} {{tmp}}/a.mp4",
            turn,
            squared=True,
        )
    )
    return made


def of_turns() -> list[Case]:
    turns = {f"turned by {degrees}": f"-display_rotation {degrees}" for degrees in (90, 180, 270)}
    flips = {
        "mirrored": "-display_hflip",
        "upside down": "-display_vflip",
        "turned and mirrored": "-display_rotation 90 -display_hflip",
    }
    every = [
        *(("mp4", "H.264", name, option) for name, option in (turns | flips).items()),
        *(("mp4", "HEVC", name, option) for name, option in turns.items()),
        *(("mkv", "H.264", name, turns[name]) for name in turns),
    ]
    return [
        odd(container, codec, name, f"{EVEN} {{codec}} {{tmp}}/a.mp4", f"{option} -i {{tmp}}/a.mp4 -map 0 -c copy {{out}}")
        for container, codec, name, option in every
    ]


TAGS_709 = "-colorspace bt709 -color_primaries bt709 -color_trc bt709"
TAGS_2020 = "-colorspace bt2020nc -color_primaries bt2020 -color_trc bt2020-10"
TONE_MAPPED = (
    "zscale=transfer=linear:npl=100,format=gbrpf32le,zscale=primaries=bt709,tonemap=tonemap=hable:desat=0:peak=10,"
    "zscale=transfer=bt709:matrix=gbr:range=full,format=gbrp"
)
# No brighter than 1,000 cd/m2 in PQ; 4:4:4, because chroma is filled in otherwise by the filters that the judge takes.
HDR = pictures(
    then="format=gbrp,lutrgb=r=12+val*0.7:g=12+val*0.7:b=12+val*0.7,scale=out_color_matrix=bt2020,format=yuv444p10le"
)
STEEP = "near black the curve is steep: 8 bits and a table of colours, where the command counts with 32 bits"


def of_colours() -> list[Case]:
    def in_matrix(matrix: str, pix_fmt: str = "yuv420p") -> str:
        return pictures(then=f"scale=out_color_matrix={matrix},format={pix_fmt}")

    full = pictures(then="scale=out_range=full,format=yuv420p")
    made = []
    for container, codec in (("mp4", "H.264"), ("mkv", "VP9"), ("mp4", "HEVC")):
        made.append(odd(container, codec, "full range", f"{full} {{codec}} -color_range pc {{out}}"))
        made.append(odd(container, codec, "BT.709", f"{in_matrix('bt709')} {{codec}} {TAGS_709} {{out}}"))
    both = f"{in_matrix('bt709:out_range=full')} {{codec}} {TAGS_709} -color_range pc {{out}}"
    made += [
        odd("mp4", "H.264", "BT.709, full range", both),
        odd("mp4", "HEVC", "BT.2020", f"{in_matrix('bt2020')} {{codec}} {TAGS_2020} {{out}}"),
        odd("mov", "ProRes", "BT.709", f"{in_matrix('bt709', 'yuv422p10le')} {{codec}} {TAGS_709} {{out}}"),
        odd("mp4", "H.264", "interlaced", f"{EVEN} {{codec}} -flags +ildct+ilme -x264-params interlaced=1 {{out}}"),
        odd("ts", "MPEG-2", "interlaced", f"{EVEN} {{codec}} -flags +ildct+ilme {{out}}"),
        odd("avi", "MPEG-4", "interlaced", f"{EVEN} {{codec}} -flags +ildct+ilme {{out}}"),
    ]
    for transfer, name in (("smpte2084", "PQ"), ("arib-std-b67", "HLG")):
        step = (
            f"{HDR} {X265} -pix_fmt yuv444p10le -color_primaries bt2020 -color_trc {transfer} -colorspace bt2020nc "
            f"{CLOSED}:colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc {{out}}"
        )
        stated = {"judged": TONE_MAPPED, "levels": 48, "mean_levels": 0.5, "why": STEEP}
        made += [
            odd("mp4", "HEVC 10 bit", f"{name} as SDR", step, **stated),
            odd("mp4", "HEVC 10 bit", f"{name} as stored", step, spec=(("hdr_to_sdr", False),), judged=""),
        ]
    return made


def cases() -> list[Case]:
    return [*plain(), *of_time(), *of_structure(), *of_size(), *of_turns(), *of_colours()]
