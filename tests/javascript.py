"""Runs the JavaScript of the page in Node, so that tests can compare it with Python."""

import json
import shutil
import subprocess

import pytest

from cnn_lightning.draw.page import WEB

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")


def run_node(code, scripts, data=None):
    """Run code after scripts of the page, as the page runs them: one after the other, in one scope.

    Args:
        code: Body of an async function, which returns what JSON can hold; ``data`` is in its scope.
        scripts: Names of files in cnn_lightning/draw/web, without .js.
        data: What JSON can hold.
    """
    parts = [(WEB / f"{name}.js").read_text(encoding="utf-8") for name in ("unpack", *scripts)]
    parts.append(f"const data = {json.dumps(data)};")
    parts.append(f"(async () => {{{code}}})().then((result) => console.log(JSON.stringify(result)));")
    done = subprocess.run(["node", "-"], input="\n".join(parts), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)
