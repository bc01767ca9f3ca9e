"""The base model's licence, as its card names it, on the cards of what is made of it."""

import pytest
import yaml

from recipe.base_model import licence
from recipe.base_model.licence import Licence
from recipe.core import settings
from recipe.core.run import Run


def run_of(tmp_path, **model):
    made = settings.load("coach")[1]
    for key, value in model.items():
        made = settings.replace(made, f"model.{key}", value)
    return Run("coach", made, tmp_path, tmp_path / "output")


def front_matter(text):
    return yaml.safe_load(text.split("---\n")[1])


@pytest.mark.parametrize(
    ("card", "found"),
    [
        (None, Licence()),
        ("# A model", Licence()),
        ("---\npipeline_tag: text-generation\n---\n# InternLM", Licence()),
        ("---\nlicense: apache-2.0\nlanguage: [en]\n---\n", Licence("apache-2.0")),
        ("﻿---\r\nlicense: mit\r\n---\r\n", Licence("mit")),
        ("---\nlicense: [mit, cc-by-4.0]\n---", Licence("mit, cc-by-4.0")),
        (
            "---\nlicense: other\nlicense_name: 通义千问\nlicense_link: https://example.org/LICENSE\n---\n",
            Licence("other", "通义千问", "https://example.org/LICENSE"),
        ),
        ("---\nlicense: 'a\n\n  b'\n---\n", Licence("a b")),
        ("---\nlicense: [unclosed\n---\n", Licence()),
        ("---\n- a list\n---\n", Licence()),
        ("---\nlicense:\n---\n", Licence()),
    ],
)
def test_a_card_is_read(tmp_path, card, found):
    if card is not None:
        (tmp_path / "README.md").write_bytes(card.encode())
    assert licence.read_card(tmp_path) == found
    written = yaml.safe_load(found.front_matter())
    assert written["license"] == (found.license or "unknown")
    assert written.get("license_name", "") == found.license_name
    assert ("unknown" in found.sentence()) is (found == Licence())
    assert found.license in found.title or found.license_name in found.title


def test_internlm2_has_terms_of_its_own_whatever_the_card_says(tmp_path):
    for model in (
        {},
        {"source": "huggingface", "id": "internlm/internlm2-chat-7b"},
        {"path": "/root/autodl-tmp/Shanghai_AI_Laboratory/internlm2-chat-7b"},
    ):
        run = run_of(tmp_path, **model)
        place = tmp_path / "models" / run.settings.model.id
        place.mkdir(parents=True, exist_ok=True)
        (place / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
        found = licence.of(run)
        assert found.license == "other"
        assert "commercial use is free, but has to be applied for" in found.sentence()


def test_others_are_read_from_the_folder_and_kept_in_the_figures(tmp_path):
    run = run_of(tmp_path, path="models/mine")
    assert licence.of(run) == Licence()
    (tmp_path / "models/mine").mkdir(parents=True)
    (tmp_path / "models/mine/README.md").write_text("---\nlicense: llama2\n---\n")
    assert licence.of(run) == Licence("llama2")
    assert licence.of(run_of(tmp_path, path="models/internlm2-mine")) == Licence()  # not one of InternLM's own
    run.manifest = {"stages": {"model": {"figures": {"base_licence": licence.read(run)._asdict()}}}}
    (tmp_path / "models/mine/README.md").unlink()
    assert licence.of(run) == Licence("llama2")
    assert licence.of(run_of(tmp_path, source="tiny")) == licence.OURS
