"""HDR to SDR: pictures with the PQ or HLG transfer (ITU-R BT.2100) as an SDR screen shows them.

The rule is the usual one of FFmpeg's command, `zscale=transfer=linear:npl=100, zscale=primaries=bt709, tonemap=hable:desat=0,
zscale=transfer=bt709`: to linear light with 1.0 at 100 cd/m2, to the primaries of BT.709, then Hable's curve on the largest of the
three components with its end at 1,000 cd/m2, and to the transfer of BT.709 screens (BT.1886). What is brighter is white.

Colours are looked up in a table of 65x65x65 colours, between which Pillow interpolates.
"""

from __future__ import annotations

import functools

import numpy as np
import PIL.Image
import PIL.ImageFilter
from av.video.reformatter import ColorTrc

PQ, HLG = int(ColorTrc.SMPTE2084), int(ColorTrc.ARIB_STD_B67)
HDR = (PQ, HLG)
NOMINAL = 100.0  # cd/m2 at 1.0
PEAK = 1000.0  # cd/m2: where the curve ends, and of the screen that HLG is made for
TABLE_SIDE = 65  # the largest that Pillow takes
TO_709 = np.array([[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]])


def to_sdr(pixels: np.ndarray, transfer: int) -> np.ndarray:
    """RGB uint8 [H, W, 3] in BT.2020 with this transfer (one of `HDR`) → RGB uint8 [H, W, 3] of BT.709."""
    image = PIL.Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.filter(_table(transfer)))


@functools.cache
def _table(transfer: int) -> PIL.ImageFilter.Color3DLUT:
    axis = np.linspace(0, 1, TABLE_SIDE)
    blue, green, red = np.meshgrid(axis, axis, axis, indexing="ij")  # Pillow's order: red changes fastest
    table = tone_mapped(np.stack([red, green, blue], axis=-1).reshape(-1, 3), transfer)
    return PIL.ImageFilter.Color3DLUT(TABLE_SIDE, table.reshape(-1).tolist())


def tone_mapped(signal: np.ndarray, transfer: int) -> np.ndarray:
    """[N, 3] of R'G'B' from 0 to 1 in BT.2020 → [N, 3] of R'G'B' from 0 to 1 in BT.709."""
    light = (pq(signal) if transfer == PQ else hlg(signal)) / NOMINAL
    light = light @ TO_709.T
    largest = np.maximum(light.max(axis=1, keepdims=True), 1e-6)
    light = np.clip(light * (_hable(largest) / _hable(np.array(PEAK / NOMINAL))) / largest, 0, 1)
    return light ** (1 / 2.4)


def pq(signal: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084: cd/m2."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = signal ** (1 / m2)
    return 10_000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def hlg(signal: np.ndarray) -> np.ndarray:
    """BT.2100: cd/m2 on a screen of `PEAK`, whose system gamma of 1.2 is applied to each component."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return PEAK * scene**1.2


def _hable(light: np.ndarray) -> np.ndarray:
    a, b, c, d, e, f = 0.15, 0.50, 0.10, 0.20, 0.02, 0.30
    return (light * (light * a + b * c) + d * e) / (light * (light * a + b) + d * f) - e / f
