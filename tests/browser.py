"""Pages in headless Chromium, Debian's: what they become once their scripts have run, and what axe-core says of them.

No network and no driver: the browser writes the page that it made, with what a script of the test appended to it.
"""

import importlib.util
import json
import pathlib
import re
import shutil
import subprocess

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needed = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")


def rendered(url: str, tmp_path: pathlib.Path, *, size: str = "1280,900", dark: bool = False, wait_ms: int = 6000) -> str:
    """The document of a page after its scripts ran."""
    assert CHROMIUM, "apt-get install chromium"
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    flags += ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run(
        [CHROMIUM, *flags, f"--window-size={size}", f"--virtual-time-budget={wait_ms}", "--dump-dom", url],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def after(page: pathlib.Path, script: str, tmp_path: pathlib.Path, **options) -> dict:
    """What `script`, the body of an async function, returns in a copy of the page beside it, without its policy against scripts."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    ending = f"""<script>addEventListener("load", () => setTimeout(async () => {{
      let found;
      try {{ found = await (async () => {{ {script} }})(); }} catch (error) {{ found = {{ error: String(error.stack || error) }}; }}
      const out = document.createElement("pre"); out.id = "out"; out.textContent = JSON.stringify(found); document.body.append(out);
    }}, 300));</script></body>"""
    copy = page.with_name(f"tried-{page.name}")
    head, _, tail = text.rpartition("</body>")
    copy.write_text(head + ending + tail, encoding="utf-8")
    try:
        made = rendered(copy.as_uri(), tmp_path, **options)
    finally:
        copy.unlink()
    found = re.search(r'<pre id="out">(.*?)</pre>', made, re.DOTALL)
    assert found, made[-2000:]
    result = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert not (isinstance(result, dict) and "error" in result), result["error"]
    return result


def axe(page: pathlib.Path, tmp_path: pathlib.Path, **options) -> list[str]:
    """What axe-core finds wrong with a page for keyboards and screen readers (WCAG 2.2 A and AA, best practices)."""
    spec = importlib.util.find_spec("axe_playwright_python")
    assert spec is not None
    assert spec.origin is not None
    core = (pathlib.Path(spec.origin).parent / "axe.min.js").read_text(encoding="utf-8").replace("</script", "<\\/script")
    found = after(
        page,
        f"{core}; const made = await axe.run(document, {{ resultTypes: ['violations'] }});"
        "return made.violations.map((each) => `${each.id}: ${each.help} (${each.nodes.length}): ${each.nodes[0].html.slice(0, 160)} "
        "${each.nodes[0].any.map((one) => one.message).join(' ').slice(0, 200)}`);",
        tmp_path,
        **options,
    )
    assert isinstance(found, list)
    return found
