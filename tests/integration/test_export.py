"""Export: each target as far as a CPU goes, with the engines' own code where PyPI has it (docker/locks/engines.in).

llama.cpp runs and gives the tokens that transformers gives. OpenCompass's own model class runs. LMDeploy's template
class renders. Of vLLM and VLMEvalKit the sources are read (vLLM itself: benchmarks/vllm_cpu.py).
"""

import ast
import base64
import http.server
import importlib.machinery
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
import torch

from recipe.base_model import licence, tiny
from recipe.cli.main import cli
from recipe.core import imports, settings
from recipe.core.errors import HostLacks, InputWrong, RunFailed
from recipe.core.run import Run
from recipe.export import gguf as export_gguf
from recipe.export import gguf_writer, targets, upload, vllm, vlmevalkit
from recipe.export.merged import CHATML, check_merged
from recipe.inference import terminal
from support.command import ROOT, recipe, runner
from support.prompts import SYSTEM, pairs, prompts

ENGINES = Path(os.environ.get("ENGINES", ""))


REFERENCE = Path(os.environ.get("REFERENCE", ""))


LIMIT = 60  # tokens of an answer


QUESTION = "我最近总是感到工作压力很大，该怎么办？"


@pytest.fixture(scope="module")
def run(demo, tmp_path_factory):
    """A copy of the demo's run folder, to export from and to break."""
    output = tmp_path_factory.mktemp("export")
    shutil.copytree(str(demo[1]), str(output / "tiny"))
    run = Run("tiny", settings.load("tiny")[1], ROOT, output)
    run.manifest = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
    return run


@pytest.fixture(scope="module")
def merged(run):
    return check_merged(run, "tiny")


def typed(run, *words):
    """A command in this process: (exit code, what it printed, its error). Saves the seconds of its imports."""
    done = runner().invoke(cli, ["export", *map(str, words), "--output", str(run.output)])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture(scope="module")
def exported(run):
    """Every target by its command: {target: what it printed}. ollama, which makes gguf before, as `just` starts it."""
    done = subprocess.run(
        [str(ROOT / "docker/runtime/host"), "run", "export", "ollama", "tiny", "--output", str(run.output)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    printed = {"ollama": done.stdout}
    for target in ("lmdeploy", "vllm", "opencompass", "vlmevalkit", "upload"):
        code, printed[target], error = typed(run, target, "tiny")
        assert code == 0, error
    return printed


def test_verify_accepts_the_links_to_the_base(run, tmp_path):
    """Which OpenCompass's folder holds; what lies there itself is compared."""
    from recipe.core import stage
    from recipe.reporting import verify

    figures = targets.TARGETS["opencompass"](run, check_merged(run, "tiny"), tmp_path)
    assert any(path.is_symlink() for path in tmp_path.rglob("*"))
    made = stage._made(tmp_path, figures["digests"]["export/opencompass"])
    assert verify._check_output(tmp_path, "export/opencompass", made).verdict == verify.OK
    (tmp_path / "eval.py").write_text("changed")
    changed = verify._check_output(tmp_path, "export/opencompass", made)
    assert changed.verdict == verify.DIFFERS
    assert "eval.py" in changed.detail


def commands(printed):
    return [shlex.split(line) for line in printed.split("\nNext:\n")[1].splitlines()]


def make(run, target, **more):
    """A target's figures, made in this process with export settings `more`; its files lie in place."""
    changed = Run(run.name, settings.replace(run.settings, "export", more), ROOT, run.output)
    place = run.folder / "export" / target
    shutil.rmtree(str(place), ignore_errors=True)
    place.mkdir(parents=True)
    return targets.TARGETS[target](changed, check_merged(changed, "tiny"), place), place


def llama(path, questions):
    """llama.cpp's answers to [server path, body] about a GGUF file, from a process of a newer Python."""
    python = subprocess.run(
        [os.environ["UV"], "python", "find", "--no-project", ">=3.10"],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"},
    ).stdout.strip()
    assert python, "no Python 3.10 or later: install one, or let uv (uv python install 3.12)"
    done = subprocess.run(
        [python, str(ROOT / "tests/support/llama.py"), str(path)],
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ENGINES)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def greedy(run, merged):
    """What transformers makes of every prompt: [(text, its tokens, the answer's, by how much each was the best)]."""
    imports.load()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(run.merged), trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(str(run.merged), torch_dtype=torch.float32, trust_remote_code=True)
    found = []
    for text in prompts(merged.template):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            made = model.eval().generate(
                ids, do_sample=False, max_new_tokens=LIMIT, output_scores=True, return_dict_in_generate=True
            )
        best = [score[0].topk(2).values for score in made.scores]
        margins = [float(first - second) for first, second in best]
        found.append((text, ids[0].tolist(), made.sequences[0, ids.shape[1] :].tolist(), margins))
    return found


@pytest.mark.parametrize(("kind", "rounding"), [("f32", 5e-4), ("f16", 1e-2)])
def test_llama_cpp_gives_the_tokens_that_transformers_gives(run, greedy, kind, rounding):
    """Greedy, token by token, of the merged demo model, on every prompt; the text is cut into the same tokens too.

    `rounding`, in logits: llama.cpp rounds what meets a f16 weight to f16, so that two tokens nearer than that may
    change places, and what follows is another text. Found apart: one of 15 prompts, at 4e-5.
    """
    figures, place = make(run, "gguf", type=kind)
    ends = json.loads((run.merged / "generation_config.json").read_text())["eos_token_id"]
    path = place / f"tiny-{kind}.gguf"
    assert figures["bytes"] == path.stat().st_size
    assert f"-m {path}" in figures["commands"][0]
    asked = [["/tokenize", {"content": text, "add_special": True, "parse_special": True}] for text, *_ in greedy]
    body = {"temperature": 0, "top_k": 1, "n_predict": LIMIT, "return_tokens": True}
    asked += [["/completion", {**body, "prompt": ids}] for _, ids, _, _ in greedy]
    answers = llama(path, asked)
    whole = 0
    for (_, ids, ours, margins), cut_into, answer in zip(greedy, answers, answers[len(greedy) :]):
        assert cut_into["tokens"] == ids
        sure = next((place for place, margin in enumerate(margins) if margin < rounding), len(ours))
        assert answer["tokens"][:sure] == ours[:sure]
        if sure == len(ours):
            assert answer["tokens"] == ours
            assert (answer["stop_type"] == "eos") == (ours[-1] in ends)
            whole += 1
    assert whole >= len(greedy) // 2
    assert sum(len(ours) < LIMIT for _, _, ours, _ in greedy) >= len(greedy) // 2  # it ends by itself: a test of that


def test_llama_cpp_stops_and_asks_as_trained(run, merged):
    """Both end tokens end an answer; the file's chat template makes the prompt that the recipe trained on."""
    _, place = make(run, "gguf", type="q8_0")
    config = json.loads((run.merged / "generation_config.json").read_text())
    body = {"prompt": [1], "n_predict": 9, "return_tokens": True}
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
    questions = [["/completion", {**body, "logit_bias": [[end, 1000.0]]}] for end in config["eos_token_id"]]
    *ends, shown, answer = llama(
        place / "tiny-q8_0.gguf",
        [
            *questions,
            ["/apply-template", {"messages": messages}],
            ["/v1/chat/completions", {"messages": messages, "temperature": 0, "max_tokens": 60}],
        ],
    )
    assert len(ends) == 2
    for end, token in zip(ends, config["eos_token_id"]):
        assert end["tokens"] == [token]
        assert end["stop_type"] == "eos"
        assert end["content"] == ""
    talker = types.SimpleNamespace(template=merged.template)
    assert shown["prompt"].replace("<s>", "") == terminal.ChatModel.prompt(talker, SYSTEM, [], QUESTION)
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert "<|im" not in answer["choices"][0]["message"]["content"]


def test_the_real_tokenizer_is_cut_alike(tmp_path, real_tokenizer):
    """Its 92,544 pieces in llama.cpp: the sample's texts, and strings of signs that it keeps whole or cannot print."""
    place = tmp_path / "model"
    sizes = dict(hidden_size=32, layers=1, heads=2, kv_heads=1, intermediate_size=32)
    tiny.make(place, [], tokenizer_model=real_tokenizer, **sizes)
    gguf_writer.write(place, tmp_path / "real.gguf", "f16", "real", "<|im_end|>", CHATML)
    tokenizer = tiny.tokenizer_from_model(place / "tokenizer.model")
    texts = [text for pair in pairs() for text in pair]
    texts += [f"<|im_start|>user\n{text}<|im_end|>\n" for text in texts[:20]]
    texts += [text for text in (ROOT / "README.md").read_text(encoding="utf-8").split("\n\n") if text]
    texts += [
        "ＡＢＥＦ——……ｅｆ",
        "it's 's",
        "🐉 \u2581 \t\r\n  ",
        "</s><s>[UNUSED_TOKEN_3]",
        "ⅠⅡ①②é\u3000０１",
        "[NUL]",
    ]
    asked = [["/tokenize", {"content": text, "add_special": True, "parse_special": True}] for text in texts]
    answers = llama(tmp_path / "real.gguf", asked)
    # \u2581 is sentencepiece's own sign for a space: the one text that is not the same afterwards
    for text, answer in zip(texts, answers):
        assert answer["tokens"] == tokenizer(text)["input_ids"], text


def test_what_the_file_says(run):
    import gguf
    import numpy

    _, place = make(run, "gguf", type="f32")
    reader = gguf.GGUFReader(str(place / "tiny-f32.gguf"))

    def said(key):
        field = reader.fields[key]
        return field.contents()

    config = json.loads((run.merged / "config.json").read_text())
    assert said("general.architecture") == "internlm2"
    assert said("internlm2.rope.freq_base") == config["rope_theta"]
    assert "internlm2.rope.scaling.type" not in reader.fields  # dynamic: only beyond the context length
    assert said("internlm2.context_length") == config["max_position_embeddings"]
    assert said("tokenizer.ggml.add_bos_token")
    assert not said("tokenizer.ggml.add_space_prefix")
    pieces, types_ = said("tokenizer.ggml.tokens"), said("tokenizer.ggml.token_type")
    assert len(pieces) == config["vocab_size"]
    assert pieces[-2:] == ["<|im_end|>", "<|im_start|>"]
    assert types_[-2:] == [int(gguf.TokenType.CONTROL)] * 2
    assert said("tokenizer.ggml.eos_token_id") == len(pieces) - 2
    # values are the folder's: q, k and v together hold wqkv's numbers, each once
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    for name, tensor in gguf_writer.tensors(run.merged):
        parts = [found.pop(target) for target in gguf_writer.gguf_names(name)]
        ours = numpy.sort(numpy.concatenate([part.ravel() for part in parts]))
        assert numpy.array_equal(ours, numpy.sort(tensor.float().numpy().ravel())), name
    assert not found


def test_other_kinds_and_other_files_hold_the_same(run, tmp_path):
    """bf16 and q8_0 are the gguf package's rounding of f32; PyTorch's .bin files give what safetensors give."""
    import gguf
    import numpy

    _, place = make(run, "gguf", type="f32")
    whole = {t.name: t.data for t in gguf.GGUFReader(str(place / "tiny-f32.gguf")).tensors}
    for kind, error in (("bf16", 2**-8), ("q8_0", 2**-6)):
        _, place = make(run, "gguf", type=kind)
        for tensor in gguf.GGUFReader(str(place / f"tiny-{kind}.gguf")).tensors:
            values, exact = gguf.dequantize(tensor.data, tensor.tensor_type), whole[tensor.name]
            assert numpy.abs(values - exact).max() <= error * numpy.abs(exact).max(), (kind, tensor.name)
    folder = tmp_path / "bin"
    shutil.copytree(str(run.merged), str(folder), ignore=shutil.ignore_patterns("*.safetensors*"))
    torch.save(dict(gguf_writer.tensors(run.merged)), str(folder / "pytorch_model.bin"))
    for source, name in ((run.merged, "a"), (folder, "b")):
        gguf_writer.write(source, tmp_path / name, "f16", "tiny", "<|im_end|>", CHATML)
    a, b = ({t.name: t.data.copy() for t in gguf.GGUFReader(str(tmp_path / n)).tensors} for n in "ab")
    assert set(a) == set(b)
    assert all(numpy.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "yarn"),
        ({"num_hidden_layers": 9}, "has weights for"),
    ],
)
def test_models_that_cannot_be_told_in_gguf_are_refused(run, tmp_path, changes, said):
    folder = tmp_path / "model"
    shutil.copytree(str(run.merged), str(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(InputWrong, match=said):
        gguf_writer.write(folder, tmp_path / "x.gguf", "f16", "x", "<|im_end|>", CHATML)


def test_too_little_disk_is_told_before_anything_is_written(run, merged, tmp_path, monkeypatch):
    usage = shutil.disk_usage(str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=1000))
    with pytest.raises(HostLacks, match="The GGUF file needs"):
        export_gguf.gguf(run, merged, tmp_path)
    assert not list(tmp_path.iterdir())


def test_numbers_that_f16_cannot_hold_are_refused(run, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(str(run.merged), str(folder))
    shard = sorted(folder.glob("*.safetensors"))[0]
    weights = {name: tensor.bfloat16() for name, tensor in load_file(str(shard)).items()}
    next(tensor for tensor in weights.values() if tensor.dim() == 2)[0, 0] = 1e6
    save_file(weights, str(shard), metadata={"format": "pt"})
    with pytest.raises(InputWrong, match="Use export"):
        gguf_writer.write(folder, tmp_path / "x.gguf", "f16", "x", "<|im_end|>", CHATML)
    gguf_writer.write(folder, tmp_path / "x.gguf", "bf16", "x", "<|im_end|>", CHATML)


def test_the_modelfile_reads_back(run, merged, exported):
    """Ollama's template, filled as Go's text/template does it for a turn, is the trained prompt."""
    text = (run.folder / "export/ollama/Modelfile").read_text(encoding="utf-8")
    origin = re.search(r"^FROM (.+)$", text, re.M)[1]
    assert (run.folder / "export/ollama" / origin).resolve() == (run.folder / "export/gguf/tiny-f16.gguf").resolve()
    assert (run.folder / "export/gguf/tiny-f16.gguf").is_file()
    assert re.findall(r'^PARAMETER stop "(.+)"$', text, re.M) == list(merged.template.STOP_WORDS) == ["<|im_end|>"]
    assert re.search(r'^SYSTEM """(.*)"""$', text, re.M | re.S)[1] == SYSTEM
    assert re.search(r'^LICENSE """(.*)"""$', text, re.M)[1] == licence.of(run).sentence()
    template = re.search(r'^TEMPLATE """(.*?)"""$', text, re.M | re.S)[1]

    def turn(**values):
        filled = template
        for name in ("System", "Prompt"):
            kept = r"\1" if values.get(name) else ""
            filled = re.sub(r"\{\{ if \." + name + r" \}\}(.*?)\{\{ end \}\}", kept, filled, flags=re.S)
        return re.sub(r"\{\{ \.(\w+) \}\}", lambda m: values[m[1]], filled)

    asked = turn(System=SYSTEM, Prompt="问一", Response="答一") + turn(Prompt="问二", Response="\0").split("\0")[0]
    talker = types.SimpleNamespace(template=merged.template)
    assert asked == terminal.ChatModel.prompt(talker, SYSTEM, [("问一", "答一")], "问二")
    create, talk = commands(exported["ollama"])
    assert create == ["ollama", "create", "tiny", "-q", "q4_K_M", "-f", str(run.folder / "export/ollama/Modelfile")]
    assert talk == ["ollama", "run", "tiny"]


# ---- LMDeploy, vLLM


def test_lmdeploys_template_class_makes_the_trained_prompt(run, merged, exported):
    """The file's fields in LMDeploy 0.2.5's own ChatML class, whose fields later versions read from such files."""
    source = ast.parse((REFERENCE / "lmdeploy/model.py").read_text(encoding="utf-8"))
    wanted = {"BaseModel", "InternLMChat7B", "InternLM2Chat7B"}
    kept = [node for node in source.body if isinstance(node, ast.ClassDef) and node.name in wanted]
    names = {}
    for node in kept:
        names[node.name] = [ast.literal_eval(d.keywords[0].value) for d in node.decorator_list]
        node.decorator_list = []
    assert "internlm2-chat-7b" in names["InternLM2Chat7B"][0]
    space = {"abstractmethod": lambda f: f, "List": list}
    exec(compile(ast.Module(kept, []), "model.py", "exec"), space)
    described = json.loads((run.folder / "export/lmdeploy/chat_template.json").read_text(encoding="utf-8"))
    assert described["stop_words"] == merged.stop_words
    fields = {key: value for key, value in described.items() if key != "model_name"}
    template = space["InternLM2Chat7B"](**fields)
    talker = types.SimpleNamespace(template=merged.template)
    turns = [("user", "问一"), ("assistant", "答一"), ("user", "问二")]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert template.messages2prompt(messages) == terminal.ChatModel.prompt(talker, SYSTEM, [("问一", "答一")], "问二")
    assert template.get_prompt("问一") == terminal.ChatModel.prompt(talker, SYSTEM, [], "问一")
    # and its own defaults are the same but for the system prompt
    own = space["InternLM2Chat7B"](meta_instruction=SYSTEM)
    assert all(getattr(own, key) == fields[key] for key in ("system", "eosys", "user", "eoh", "assistant", "eoa"))
    (command,) = commands(exported["lmdeploy"])
    assert command[:4] == ["lmdeploy", "serve", "api_server", str(run.merged)]
    assert command[command.index("--chat-template") + 1] == str(run.folder / "export/lmdeploy/chat_template.json")


def test_vllms_source_knows_the_model_and_the_flags(run, exported):
    registry = (ENGINES / "vllm/model_executor/models/registry.py").read_text(encoding="utf-8")
    assert '"InternLM2ForCausalLM": ("internlm2", "InternLM2ForCausalLM")' in registry
    serve, ask = commands(exported["vllm"])
    assert serve[:3] == ["vllm", "serve", str(run.merged)]
    arguments = (ENGINES / "vllm/engine/arg_utils.py").read_text(encoding="utf-8")
    for flag in [word for word in serve if word.startswith("--")]:
        assert f'"{flag}"' in arguments, flag
    body = json.loads(Path(ask[-1][1:]).read_text(encoding="utf-8"))
    assert body["model"] == serve[serve.index("--served-model-name") + 1]
    assert body["messages"][0] == {"role": "system", "content": SYSTEM}


def test_vllm_would_turn_positions_otherwise_without_the_override(run, exported):
    """vLLM's own class for dynamic scaling gives other angles at position 1 than the model; the plain base the same."""
    config = json.loads((run.merged / "config.json").read_text())
    source = ast.parse(
        (ENGINES / "vllm/model_executor/layers/rotary_embedding/dynamic_ntk_scaling_rope.py").read_text()
    )
    (node,) = [n for n in source.body if isinstance(n, ast.ClassDef)]
    space = {"torch": torch, "RotaryEmbedding": object}
    exec(compile(ast.Module([node], []), "rope.py", "exec"), space)
    dim = config["hidden_size"] // config["num_attention_heads"]
    theirs = object.__new__(space[node.name])
    theirs.base, theirs.rotary_dim = config["rope_theta"], dim
    theirs.scaling_factor, theirs.max_position_embeddings = config["rope_scaling"]["factor"], 64
    theirs._compute_inv_freq = lambda base: base ** (-torch.arange(0, dim, 2).float() / dim)
    cosines = theirs._compute_cos_sin_cache()[1, : dim // 2]
    plain = (config["rope_theta"] ** (-torch.arange(0, dim, 2).float() / dim)).cos()
    assert not torch.allclose(cosines, plain, atol=1e-6)
    serve, _ = commands(exported["vllm"])
    assert json.loads(serve[serve.index("--hf-overrides") + 1]) == {"rope_scaling": None}
    assert int(serve[serve.index("--max-model-len") + 1]) == config["max_position_embeddings"]


# ---- OpenCompass, VLMEvalKit


@pytest.fixture
def opencompass(monkeypatch):
    """OpenCompass 0.5.4 without what its packages import on the side: its modules are the real ones."""
    monkeypatch.syspath_prepend(str(ENGINES))
    for name in ("opencompass", "opencompass.models", "opencompass.utils"):
        package = types.ModuleType(name)
        package.__path__ = [str(ENGINES / name.replace(".", "/"))]
        package.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        package.__spec__.submodule_search_locations = package.__path__
        monkeypatch.setitem(sys.modules, name, package)
    imports.load()
    from opencompass.utils.logging import get_logger

    sys.modules["opencompass.utils"].get_logger = get_logger
    from opencompass.models.huggingface_above_v4_33 import HuggingFacewithChatTemplate

    sys.modules["opencompass.models"].HuggingFacewithChatTemplate = HuggingFacewithChatTemplate
    yield HuggingFacewithChatTemplate
    for name in [name for name in sys.modules if name.startswith("opencompass.")]:
        monkeypatch.delitem(sys.modules, name)


def test_opencompass_runs_the_config(run, merged, exported, opencompass):
    """mmengine reads it, its data sets are in OpenCompass, and OpenCompass's class answers as `just chat` does."""
    from mmengine.config import Config
    from opencompass.utils.prompt import PromptList

    (command,) = commands(exported["opencompass"])
    config = Config.fromfile(command[1])._to_lazy_dict()
    assert [one["abbr"] for one in config["models"]] == ["tiny", "tiny-base"]
    assert len(config["datasets"]) == 68  # 67 subjects of CMMLU and GSM8K
    assert all("[0:" in one["reader_cfg"]["test_range"] for one in config["datasets"])
    base = Path(config["models"][1]["path"])  # links to the base, with our code in the place of its own
    assert base.parent == Path(command[1]).resolve().parent
    assert not (base / "modeling_internlm2.py").is_symlink()
    assert all(path.is_symlink() for path in base.glob("*.safetensors"))
    answers = []
    for entry in config["models"]:
        assert Path(entry["path"]).is_dir()
        task = ("type", "abbr", "run_cfg", "max_out_len", "batch_size")  # OpenCompass's own, not the class's
        given = {key: value for key, value in entry.items() if key not in task}
        assert set(given) <= set(inspect.signature(opencompass).parameters)
        model = opencompass(**given, model_kwargs=dict(device_map=None, torch_dtype="float32"))  # no GPU here
        assert set(model.stop_words) == {"</s>", "<|im_end|>"}
        answers += model.generate([PromptList([dict(role="HUMAN", prompt=QUESTION)])], max_out_len=60)
    ours, ended = terminal.ChatModel(run.merged, merged.template).answer("", [], QUESTION, limit=60)
    assert ended
    assert answers[0].strip() == ours
    assert answers[1] != answers[0]


def test_vlmevalkit_lets_it_judge_and_says_what_it_cannot(run, exported):
    assert "cannot evaluate this text model" in exported["vlmevalkit"]
    width = json.loads((run.merged / "config.json").read_text())["hidden_size"]
    assert f"XTuner has no LLaVA for a model of width {width}" in exported["vlmevalkit"]
    assert not (run.folder / "export/vlmevalkit/config.json").exists()
    lines = (run.folder / "export/vlmevalkit/judge.env").read_text().splitlines()
    said = dict(line.split("=", 1) for line in lines)
    source = "".join((ENGINES / "vlmeval" / name).read_text() for name in ("api/gpt.py", "dataset/utils/judge_util.py"))
    for name in said:
        assert f"'{name}'" in source, name
    serve = commands(exported["lmdeploy"])[0]
    assert said["LOCAL_LLM"] == serve[serve.index("--model-name") + 1]
    assert f":{serve[serve.index('--server-port') + 1]}/" in said["OPENAI_API_BASE"]


def test_vlmevalkit_config_for_the_real_width(run, merged, tmp_path):
    """Classes and arguments are VLMEvalKit's, and those of its own entry for the base model."""
    import dataclasses

    wide = dataclasses.replace(merged, config={**merged.config, "hidden_size": 4096})
    figures = vlmevalkit.vlmevalkit(run, wide, tmp_path)
    assert len(figures["commands"]) == 2
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (entry,) = config["model"].values()
    source = ast.parse((ENGINES / "vlmeval/config.py").read_text(encoding="utf-8"))
    (theirs,) = [
        value
        for node in ast.walk(source)
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values)
        if isinstance(key, ast.Constant) and key.value == "llava-internlm2-7b"
    ]
    arguments = {word.arg: ast.literal_eval(word.value) for word in theirs.keywords}
    assert theirs.args[0].attr == entry.pop("class")
    assert entry.pop("llm_path") == str(run.merged.resolve())
    assert arguments.pop("llm_path") == "internlm/internlm2-chat-7b"
    assert entry == arguments
    (data_set,) = config["data"].values()
    source = (ENGINES / "vlmeval/dataset/image_mcq.py").read_text(encoding="utf-8")
    assert f"class {data_set['class']}(" in source
    assert f"'{data_set['dataset']}'" in source


# ---- upload


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of Hugging Face's hub as an upload of small files asks for."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, self.headers.get("Authorization"), body))
        if self.path == "/api/repos/create":
            made = json.loads(body)
            reply = {"url": f"{self.server.url}/{made['organization']}/{made['name']}"}
        elif "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            reply = {"files": [{**file, "shouldIgnore": False} for file in files]}
        else:
            reply = {"commitOid": "0" * 40, "commitUrl": f"{self.server.url}/me/coach/commit/0"}
        self.answer(reply)

    def do_GET(self):
        self.answer({"id": "me/coach", "sha": "0" * 40, "siblings": []})

    def answer(self, reply):
        text = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.url = [], f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_upload_shows_and_only_then_sends(run, exported, hub):
    assert "nothing was uploaded" in exported["upload"]
    files = json.loads((run.folder / "export/upload/files.json").read_text())
    names = {path.name for path in run.merged.iterdir()}
    assert set(files) == names | {"configuration.json"}  # ModelScope asks for that one
    for name, size in files.items():
        assert f"{size:,}  {name}" in exported["upload"].replace("   ", " ")
    words = ["upload", "tiny", "export.hub=huggingface", "export.repo=me/coach"]
    (command,) = commands(typed(run, *words)[1])
    named = ["tiny", "--output", str(run.output)]
    assert command[1:] == ["export", "upload", *named, "export.repo=me/coach", "export.hub=huggingface", "--yes"]
    there = dict(HF_ENDPOINT=hub.url, HF_TOKEN="hf_test")
    done = recipe(*command[1:], "--output", run.output, **there)
    assert done.returncode == 0, done.stderr
    assert "Sent:" in done.stdout
    created = json.loads(next(body for path, _, body in hub.asked if path == "/api/repos/create"))
    assert created["private"] is True
    assert created["name"] == "coach"
    assert all(token == "Bearer hf_test" for _, token, _ in hub.asked)
    commit = next(body for path, _, body in hub.asked if "/commit/" in path)
    sent = {}
    for line in map(json.loads, commit.decode().splitlines()):
        if line["key"] == "file":
            sent[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
    assert sent == {name: (run.merged / name).read_bytes() for name in names}
    assert not (run.folder / ".upload.part").exists()


def test_upload_to_modelscope_goes_through_its_own_call(run, merged, monkeypatch):
    """Its push is git and git-lfs against its own server: here that call stands in, with its real signature."""
    from modelscope.hub.api import HubApi

    called = {}
    signature = inspect.signature(HubApi.push_model)

    def push(self, **given):
        signature.bind(self, **given)
        called.update(given, files={path.name for path in Path(given["model_dir"]).iterdir()})

    monkeypatch.setattr(HubApi, "push_model", push)
    monkeypatch.setattr(HubApi, "login", lambda self, token: called.update(token=token))
    monkeypatch.setattr(upload, "has_git_lfs", lambda: True)
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms-test")
    make(run, "upload")
    mine = Run(run.name, settings.replace(run.settings, "export", {"repo": "me/coach"}), ROOT, run.output)
    assert upload.send(mine, merged) == "me/coach"
    assert called["token"] == "ms-test"
    assert called["visibility"] == 1
    assert called["files"] == {path.name for path in run.merged.iterdir()} | {"configuration.json"}
    assert called["license"] == "Apache License 2.0"
    for terms, name in ((licence.INTERNLM2, "other"), (licence.Licence(), "unknown")):
        monkeypatch.setitem(run.figures("model"), "base_licence", terms._asdict())
        mine.manifest = run.manifest
        upload.send(mine, merged)
        assert called["license"] == name
        figures = upload.upload(run, merged, run.folder / "export" / "upload")
        assert terms.sentence() in figures["notes"]
    monkeypatch.setattr(HubApi, "push_model", lambda self, **given: 1 / 0)
    with pytest.raises(RunFailed, match="could not be uploaded to modelscope"):
        upload.send(mine, merged)
    monkeypatch.setattr(upload, "has_git_lfs", lambda: False)
    with pytest.raises(HostLacks, match="git-lfs"):
        upload.send(mine, merged)
    with pytest.raises(InputWrong, match=r"export\.repo=owner/name"):
        upload.send(run, merged)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    away = {"repo": "me/coach", "hub": "huggingface"}
    with pytest.raises(HostLacks, match="HF_TOKEN"):
        upload.send(Run(run.name, settings.replace(run.settings, "export", away), ROOT, run.output), merged)


# ---- the check, and the command


def shards(place):
    return sorted(place.glob("model-*.safetensors"))


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def without(index):
    content = json.loads(index.read_text())
    content["weight_map"]["model.layers.9.attention.wo.weight"] = sorted(content["weight_map"].values())[0]
    index.write_text(json.dumps(content))


FAULTS = {
    "shard gone": (lambda m: shards(m)[1].unlink(), "shard model-00002-of-0000"),
    "shard cut": (lambda m: cut(shards(m)[2]), r"model-00003-of-0000\d\.safetensors .* is truncated"),
    "tensor gone": (lambda m: without(m / "model.safetensors.index.json"), "does not contain model.layers.9"),
    "no weights": (lambda m: [path.unlink() for path in m.glob("model*safetensors*")], "no weights"),
    "no config": (lambda m: (m / "config.json").unlink(), "config.json is missing"),
    "config no JSON": (lambda m: (m / "config.json").write_text("{"), "config.json is damaged"),
    "no tokenizer": (lambda m: (m / "tokenizer.model").unlink(), "tokenizer.model is missing"),
    "tokenizer damaged": (lambda m: (m / "tokenizer.model").write_bytes(b"x"), "tokenizer.model is damaged"),
    "other tokenizer": (lambda m: edit(m / "config.json", vocab_size=1000), "another model's tokenizer"),
    "no code": (lambda m: (m / "modeling_internlm2.py").unlink(), "modeling_internlm2.py is missing"),
    "never stops": (lambda m: edit(m / "generation_config.json", eos_token_id=2), r"stops at \[2\] only"),
    "no generation config": (lambda m: (m / "generation_config.json").unlink(), "generation_config.json is missing"),
    "other template": (lambda m: edit(m / "tokenizer_config.json", chat_template="{{ messages }}"), "trained with"),
    "broken template": (lambda m: edit(m / "tokenizer_config.json", chat_template="{% for %}"), "trained with"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_incomplete_model_is_refused_in_one_sentence(run, tmp_path, fault):
    broken = Run(run.name, run.settings, ROOT, tmp_path)
    shutil.copytree(str(run.merged), str(broken.merged))
    shutil.copy(str(run.config), str(broken.config))
    check_merged(broken, "tiny")
    damage, said = FAULTS[fault]
    damage(broken.merged)
    with pytest.raises((HostLacks, InputWrong), match=said) as error:
        check_merged(broken, "tiny")
    assert "merge tiny" in str(error.value) or "Correct chat_template" in str(error.value)


def test_the_model_of_an_earlier_training_is_not_handed_over(run, tmp_path):
    old = Run(run.name, run.settings, ROOT, tmp_path)
    shutil.copytree(str(run.folder), str(old.folder))
    old.manifest = json.loads((old.folder / "run.json").read_text(encoding="utf-8"))
    old.manifest["stages"]["adapter"]["finished"] = "2999-01-01T00:00:00+0000"
    check_merged(old, "tiny")  # made again, and the same
    weights = old.adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(InputWrong, match=r"belongs to an earlier training than the one in .* just merge tiny"):
        check_merged(old, "tiny")


def test_pytorchs_shards_are_checked_too(run, tmp_path):
    """As `just merge tutorial` writes them: .bin with an index."""
    broken = Run(run.name, run.settings, ROOT, tmp_path)
    shutil.copytree(str(run.merged), str(broken.merged), ignore=shutil.ignore_patterns("*.safetensors*"))
    shutil.copy(str(run.config), str(broken.config))
    weights = dict(gguf_writer.tensors(run.merged))
    torch.save(weights, str(broken.merged / "pytorch_model-00001-of-00001.bin"))
    index = {"weight_map": dict.fromkeys(weights, "pytorch_model-00001-of-00001.bin")}
    (broken.merged / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    check_merged(broken, "tiny")
    cut(broken.merged / "pytorch_model-00001-of-00001.bin")
    with pytest.raises(HostLacks, match=r"pytorch_model-00001-of-00001\.bin .* is truncated"):
        check_merged(broken, "tiny")


def test_a_model_without_a_template_gets_the_trained_one(run, merged, tmp_path):
    bare = Run(run.name, run.settings, ROOT, tmp_path)
    shutil.copytree(str(run.merged), str(bare.merged))
    shutil.copy(str(run.config), str(bare.config))
    edit(bare.merged / "tokenizer_config.json", chat_template=None)
    found = check_merged(bare, "tiny")
    assert not found.has_chat_template
    assert found.chat_template == CHATML
    (tmp_path / "vllm").mkdir()
    figures = vllm.vllm(bare, found, tmp_path / "vllm")
    assert "--chat-template" in figures["commands"][0]
    assert (tmp_path / "vllm/chat_template.jinja").read_text(encoding="utf-8") == CHATML


def test_the_command(run, exported, tmp_path):
    code, said, _ = typed(run, "tiny", "ollama")  # either order; nothing is made twice
    assert code == 0
    assert said.count("unchanged") == 2
    entries = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))["stages"]
    for target in targets.TARGETS:
        assert f"export/{target}" in entries[f"export-{target}"]["outputs"], target
    assert entries["export-gguf"]["figures"]["bytes"] == (run.folder / "export/gguf/tiny-f16.gguf").stat().st_size
    elsewhere = Run("tiny", run.settings, ROOT, tmp_path)
    for where, words, told in (
        (run, [], "|".join(sorted(targets.TARGETS))),
        (run, ["gguff", "tiny"], "gguff: no such target"),
        (run, ["gguf", "tiny", "more"], "Too many words: more"),
        (run, ["gguf", "tiny", "train.lr=1e-4"], "only export."),
        (run, ["gguf", "tiny", "export.type=q2"], "export.type"),
        (elsewhere, ["gguf", "tiny"], "no merged model"),
    ):
        code, _, error = typed(where, *words)
        assert code == 2
        assert told in error
