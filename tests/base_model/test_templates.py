"""What `serve` and `doctor` say of a model that could chat and never be trained, or whose template loses something."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, make

from thumbwise.base_model import prepare, templates, trainable
from thumbwise.cli.doctor import check_model
from thumbwise.errors import ThumbwiseError
from thumbwise.feedback.records import FeedbackRequest
from thumbwise.home import Home
from thumbwise.serving.assistant import Assistant
from thumbwise.settings import Settings
from thumbwise.settings.engine import EngineSettings
from thumbwise.settings.training import TrainSettings
from thumbwise.training.backbone.backbone import Backbone

Spoil = Callable[[Path], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(FAMILIES["qwen_3"], tmp_path / "model")


def template(text: str) -> Spoil:
    return lambda folder: folder.joinpath("chat_template.jinja").write_text(text) and None


def config(**changes: Any) -> Spoil:
    def changed(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return changed


def ends(*ids: int) -> Spoil:
    """The model stops at `ids` alone, and its tokenizer names no end token."""

    def changed(folder: Path) -> None:
        for name in ("config.json", "generation_config.json"):
            row = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps(row | {"eos_token_id": list(ids) or None}))
        row = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(row | {"eos_token": None}))

    return changed


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (template("Hello. {% for m in messages %}<|im_start|>{% endfor %}"), "leaves out what people write"),
        (template("{% for m in messages %}{{ m['content']"), "cannot be used .*unexpected end of template"),
        (template("{{ messages | map('nothing') | list }}{{ messages[0].content.x.y }}"), "cannot be used"),
        (template("{{ raise_exception('no chats') }}"), r"cannot be used \(no chats\): fix chat_template.jinja"),
        (ends(), "names no token that ends a reply: put its id as eos_token_id"),
        (ends(2), r"would not stop at the end of a reply, .* marks with <\|im_end\|>: add 1 to eos_token_id"),
    ],
)
def test_a_template_that_loses_texts_or_the_end_of_a_reply_is_refused(folder: Path, spoil: Spoil, says: str) -> None:
    templates.check(folder, {"enable_thinking": False})
    spoil(folder)
    with pytest.raises(ThumbwiseError, match=says):
        templates.check(folder, {})


def test_an_argument_that_a_template_does_not_read_is_refused(folder: Path) -> None:
    with pytest.raises(ThumbwiseError, match="reads no enable_thinkin: take it out of `chat_template_kwargs`"):
        templates.check(folder, {"enable_thinkin": False})


@pytest.mark.parametrize("name", ["tools", "add_generation_prompt", "strftime_now"])
def test_what_is_ours_to_say_is_no_argument(tmp_path: Path, name: str) -> None:
    home = Home.find(tmp_path)
    with pytest.raises(ThumbwiseError, match=f"chat_template_kwargs: .*{name} cannot be given to a chat template"):
        Settings.load(home, chat_template_kwargs={name: 1})


@pytest.mark.parametrize("number", ["nan", "-inf"])
def test_a_number_that_no_request_can_carry_is_refused(tmp_path: Path, number: str) -> None:
    home = Home.find(tmp_path)
    home.config.write_text(f"chat_template_kwargs = {{budgets = [{number}]}}\n")
    with pytest.raises(ThumbwiseError, match=r"chat_template_kwargs: .* nan and inf cannot be sent to a chat template"):
        Settings.load(home)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"added_tokens_decoder": {"x": {"content": "<|im_end|>"}}}, "tokenizer in .* cannot be read"),
        ({"added_tokens_decoder": {"1": 3}}, "tokenizer in .* cannot be read"),
        ({"chat_template": ["{{ messages }}", {"name": "other"}]}, "has no chat template"),
    ],
)
def test_a_damaged_tokenizer_is_a_sentence(folder: Path, changes: dict[str, Any], says: str) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    if "chat_template" in changes:
        (folder / "chat_template.jinja").unlink()
    with pytest.raises(ThumbwiseError, match=says):
        templates.check(folder, {})


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path, folder: Path) -> None:
    prepare.check(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ThumbwiseError, match=r"has no tokenizer \(tokenizer.json or the like\).*copy it there"):
        prepare.check(folder)


def test_arguments_are_plain_data_in_the_settings_file(tmp_path: Path) -> None:
    home = Home.find(tmp_path)
    home.config.write_text("chat_template_kwargs = {enable_thinking = false}\n")
    assert Settings.load(home).chat_template_kwargs == {"enable_thinking": False}


def test_a_template_that_takes_parts_alone_gets_parts(tmp_path: Path) -> None:
    """In the training job as in vLLM, which is told so."""
    from thumbwise.engine.supervisor import Engine

    folder = make(FAMILIES["gemma_3"], tmp_path / "gemma")
    assert templates.FolderTemplate(folder, {}).format == "openai"
    line = Engine(folder, EngineSettings(), run_dir=tmp_path / "run", log=tmp_path / "log").command()
    assert line[line.index("--chat-template-content-format") + 1] == "openai"
    chat = Backbone(folder, TrainSettings(dtype="float32")).chat
    assert "Say this." in chat.tokenizer.decode(chat.prompt_ids([{"role": "user", "content": "Say this."}]))


def test_mistrals_own_tokenizer_does_not_take_the_place_of_the_folders_template(tmp_path: Path) -> None:
    """transformers and vLLM would prefer it where there is a tekken.json, and leave the template aside."""
    from thumbwise.engine.supervisor import Engine

    folder = make(FAMILIES["mistral"], tmp_path / "mistral")
    (folder / "tekken.json").write_text("{}")
    line = Engine(folder, EngineSettings(), run_dir=tmp_path / "run", log=tmp_path / "log").command()
    assert line[line.index("--tokenizer-mode") + 1] == "hf"
    chat = Backbone(folder, TrainSettings(dtype="float32")).chat
    assert "[INST] Say this." in chat.tokenizer.decode(chat.prompt_ids([{"role": "user", "content": "Say this."}]))


def test_the_job_refuses_a_template_that_leaves_out_what_people_write(folder: Path) -> None:
    template("Hello.")(folder)
    with pytest.raises(ThumbwiseError, match="leaves out what people write"):
        Backbone(folder, TrainSettings(dtype="float32"))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_is_read_as_the_tokenizer_reads_it(tmp_path: Path, name: str) -> None:
    """What `serve` looks at by itself is what transformers renders."""
    from transformers import AutoTokenizer

    family = FAMILIES[name]
    folder = make(family, tmp_path / name)
    tokenizer, ours = AutoTokenizer.from_pretrained(folder), templates.FolderTemplate(folder, family.arguments)
    said = [("user", "Who is it?"), ("assistant", "It's <b>me</b> é."), ("user", "Why?")]
    for turns, begin in ((said, True), (said[:2], False)):
        messages = [templates.with_text(role, text, ours.format) for role, text in turns]
        theirs = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=begin, **family.arguments
        )
        assert ours.render(turns, ours.format, begin) == theirs
    assert ours.stops() == set(tokenizer.convert_tokens_to_ids([family.turn_end, family.eos]))
    assert ours.turn_end() == (family.turn_end, tokenizer.convert_tokens_to_ids(family.turn_end))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (config(is_encoder_decoder=True), "writes with a decoder, which is not trained here"),
        (config(architectures=["Gemma3ForConditionalGeneration"]), "reads pictures or sound beside text"),
        (config(vision_config={"depth": 2}), "reads pictures or sound beside text"),
        (config(architectures=["BertForSequenceClassification"]), "is a BertForSequenceClassification, and no"),
        (config(quantization_config={"quant_method": "awq"}), "quantised weights, .* name the same model in bfloat16"),
        (config(num_experts=8), "is a mixture of experts"),
        (config(num_local_experts=4), "is a mixture of experts"),
        (config(text_config={"n_routed_experts": 64}), "is a mixture of experts"),
        (config(layer_types=["linear_attention", "full_attention"]), "keeps a state instead of keys and values"),
        (config(state_size=16), "keeps a state instead of keys and values"),
    ],
)
def test_a_model_that_training_cannot_take_is_refused_by_serve_and_doctor(
    tmp_path: Path, folder: Path, spoil: Spoil, says: str
) -> None:
    home = Home.find(tmp_path / "home")
    prepare.prepare(home, str(folder))
    spoil(folder)
    with pytest.raises(ThumbwiseError, match=says):
        prepare.prepare(home, str(folder))
    home.config.write_text(f'model = "{folder}"\n')
    with pytest.raises(ThumbwiseError, match=says):
        check_model(home)


REFUSED = {
    "mixture of experts": ("qwen3_moe", "mixtral", "granitemoe", "deepseek_v3", "gpt_oss", "dbrx"),
    "keeps a state": ("mamba", "mamba2", "falcon_h1", "recurrent_gemma", "rwkv", "lfm2", "bamba"),
    "writes with a decoder": ("t5", "bart", "t5gemma"),
    "reads pictures or sound": ("gemma3", "qwen2_5_vl", "llava", "mllama", "mistral3", "voxtral"),
    "and no ...ForCausalLM": ("gpt2", "bert"),
}
TAKEN = (
    "llama",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma3_text",
    "phi3",
    "mistral",
    "smollm3",
    "olmo2",
    "starcoder2",
    "glm4",
    "gemma2",
    "cohere",
    "cohere2",
    "granite",
    "phi",
)


@pytest.mark.parametrize(
    ("kind", "says"), [(kind, says) for says, kinds in REFUSED.items() for kind in kinds] + [(k, "") for k in TAKEN]
)
def test_every_kind_of_model_is_known_by_the_configuration_that_transformers_writes(
    tmp_path: Path, kind: str, says: str
) -> None:
    import transformers.models.auto.modeling_auto as auto
    from transformers import AutoConfig

    mappings = (
        auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )  # fmt: skip
    config = AutoConfig.for_model(kind)
    config.architectures = [next(names[kind] for names in mappings if kind in names)]
    config.save_pretrained(tmp_path)
    read = json.loads((tmp_path / "config.json").read_text())
    if not says:
        trainable.check(tmp_path, read)
        return
    with pytest.raises(ThumbwiseError, match=says):
        trainable.check(tmp_path, read)


def test_a_model_that_was_downloaded_before_is_looked_at_too(tmp_path: Path, folder: Path) -> None:
    home = Home.find(tmp_path / "home")
    kept = home.models / "org--name"
    config(num_experts=8)(folder)
    shutil.copytree(folder, kept)
    (kept / "digest.json").write_text("{}")
    with pytest.raises(ThumbwiseError, match="org--name is a mixture of experts"):
        prepare.prepare(home, "org/name")


async def test_the_assistant_says_so_and_starts_no_engine(tmp_path: Path, folder: Path) -> None:
    home = Home.find(tmp_path / "home")
    home.config.write_text(f'model = "{folder}"\nchat_template_kwargs = {{thinking = false}}\n')
    assistant = Assistant(home, Settings.load(home))
    await assistant.start()
    try:
        assert assistant._starting is not None
        await assistant._starting
        assert "reads no thinking" in assistant.status().detail
        assert assistant.engine is None
    finally:
        await assistant.stop()


def test_doctor_tells_of_the_template_and_its_arguments(tmp_path: Path, folder: Path) -> None:
    home = Home.find(tmp_path / "home")
    home.config.write_text(f'model = "{folder}"\nchat_template_kwargs = {{enable_thinking = false}}\n')
    assert check_model(home).status == "ok"
    home.config.write_text(f'model = "{folder}"\nchat_template_kwargs = {{thinking = false}}\n')
    with pytest.raises(ThumbwiseError, match="reads no thinking"):
        check_model(home)
    home.config.write_text(f'model = "{folder}"\n')
    assert check_model(home).status == "warning"
    assert "`chat_template_kwargs = {enable_thinking = false}` in config.toml" in check_model(home).detail


def test_looking_at_a_model_loads_no_torch(folder: Path) -> None:
    code = "import sys; from pathlib import Path; from thumbwise.base_model import prepare, templates\n"
    code += "prepare.check(Path(sys.argv[1])); templates.check(Path(sys.argv[1]), {})\n"
    code += "print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_blank_correction_is_refused_with_a_sentence() -> None:
    with pytest.raises(ThumbwiseError, match="a corrected reply cannot be blank: write what it should have said"):
        FeedbackRequest(kind="edit", message_id="m", value={"text": " \n"}).checked()
