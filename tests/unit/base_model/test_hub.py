"""Where the hubs' clients keep their files, and what they import."""

import os
import subprocess
import sys

from support.command import ROOT


def test_caches_and_home_lie_below_ours_where_there_is_no_home(tmp_path):
    names = ("HOME", "HF_HOME", "MODELSCOPE_CACHE", "XDG_CACHE_HOME")
    code = f"import os, recipe.__main__; print(*(os.environ[name] for name in {names}))"
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment.update(HOME="/proc/none", RECIPE_CACHE=str(tmp_path), PYTHONPATH=str(ROOT))
    said = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True).stdout
    assert said.split() == [str(tmp_path / name) for name in ("home", "huggingface", "modelscope", "")]
    assert (tmp_path / "home").is_dir()


def test_modelscopes_hub_part_needs_no_framework():
    code = (
        "import sys; sys.modules.update(dict.fromkeys('torch attr datasets einops oss2 PIL scipy'.split()))\n"
        "from modelscope.hub.api import HubApi\nfrom modelscope.hub.file_download import get_file_download_url\n"
        "assert not [m for m in sys.modules if m.startswith(('modelscope.models', 'modelscope.trainers'))]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
