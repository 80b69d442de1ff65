"""What operators run, as far as it can be checked without a Docker engine or a booted systemd."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import click
import pytest
from deploy_files import ASSISTANT, COMPOSE, DEPLOY, ROOT, TRAIN, lines_of, unit

from thumbwise.cli.main import main
from thumbwise.engine.supervisor import COMPILERS, Engine
from thumbwise.home import Home, HomeLock
from thumbwise.settings import NOT_SETTINGS, PREFIX, Settings, describe

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
INSTALLED = "/opt/thumbwise/.venv/bin/"
GUIDE = (DEPLOY / "README.md").read_text().replace("\\\n", "")
UNITS = ("thumbwise.service", "thumbwise-train.service")


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions, arguments filled in."""
    found, arguments = [], {}
    for line in lines_of("Dockerfile"):
        name, text = line.split(None, 1)
        for key, value in arguments.items():
            text = text.replace(f"${{{key}}}", value)
        if name == "ARG":
            arguments.update([text.split("=", 1)])
        found.append((name, text))
    return found


def every(name: str) -> list[str]:
    return [text for instruction, text in instructions() if instruction == name]


def image_commands() -> list[list[str]]:
    """Return the words of every command that is run while the image is built."""
    runs = [re.sub(r"^(--\w+=\S+\s+)+", "", run) for run in every("RUN")]
    return [shlex.split(command) for run in runs for command in run.split("&&")]


def makefile_installation() -> list[list[str]]:
    """Return what `make setup` does with pip, as it should be in an image: not editable, without `dev`."""
    text = (ROOT / "Makefile").read_text()
    variables = dict(re.findall(r"^(\w+) \??:?= ?(.*)$", text, re.MULTILINE))
    steps = []
    for line in re.findall(r"^\t@(\$\(PIP\).*)$", text[: text.index("\nrun:")], re.MULTILINE):
        step = re.sub(r" 2>.*| +#.*", "", line.split("||")[-1]).replace("$(PIP)", "pip").replace("--editable ", "")
        steps.append(shlex.split(re.sub(r"\$\((\w+)\)", lambda m: variables[m[1]], step).replace("[cpu,dev]", "[cpu]")))
    return steps


def ignored(path: str) -> bool:
    """Whether Docker leaves `path` out of the build: the last pattern that fits it, or a folder above it, decides."""
    verdict = False
    above = [path, *map(str, Path(path).parents)]
    for line in (DEPLOY / "Dockerfile.dockerignore").read_text().split():
        pattern = re.escape(line.removeprefix("!")).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        if any(re.fullmatch(pattern, folder) for folder in above if folder != "."):
            verdict = not line.startswith("!")
    return verdict


def refusal(arguments: list[str]) -> str:
    """Why the command line would refuse these arguments; empty where it would not."""
    command: Any = main
    context = click.Context(main)
    try:
        while isinstance(command, click.Group):
            _, command, arguments = command.resolve_command(context, list(arguments))
            context = click.Context(command, parent=context)
        command.make_context(command.name, list(arguments))
    except click.UsageError as error:
        return error.format_message()
    return ""


def test_a_wrong_command_is_refused_and_a_right_one_is_not() -> None:
    assert refusal(["policies", "promote", "policy-0001-abc", "--reason", "why"]) == ""
    assert "No such command" in refusal(["trian"])
    assert "No such option" in refusal(["policies", "rollback", "--hard"])


# --- the image -------------------------------------------------------------------------------------------


def test_the_image_installs_what_the_makefile_installs_in_the_same_order() -> None:
    steps = makefile_installation()
    assert [command for command in image_commands() if command[0] == "pip"] == steps
    assert [step[1] for step in steps] == ["install", "install", "install", "uninstall"]
    assert steps[0][2].startswith("torch==")
    assert steps[1][2] == ".[cpu]"
    (run,) = [text for text in every("RUN") if "pip uninstall" in text]
    assert ".[cpu]" in run  # else a layer would keep what is uninstalled again


def test_the_image_has_the_python_the_compiler_and_the_library_that_are_needed() -> None:
    version, wanted = (re.findall(r"\d+", text) for text in (every("FROM")[0], PROJECT["project"]["requires-python"]))
    assert [int(number) for number in version[:2]] >= [int(number) for number in wanted]
    packages = next(command for command in image_commands() if command[:2] == ["apt-get", "install"])
    assert set(packages) & set(COMPILERS)
    assert "libnuma1" in packages  # of vLLM's CPU kernels; the slim image has none


def test_the_image_copies_every_folder_of_the_package_and_nothing_that_is_not_there() -> None:
    needed = {Path(folder).parts[0] for folder in PROJECT["tool"]["setuptools"]["package-dir"].values()}
    copied = set()
    for text in every("COPY"):
        *sources, target = text.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            # of a folder COPY takes what is in it, so that a shared target would mix two of them
            assert (ROOT / source).is_file() or Path(target).name == source, text
        copied |= set(sources)
    assert copied == needed | {"pyproject.toml", "README.md", "LICENSE"}


def test_the_build_sees_every_needed_file_and_no_other() -> None:
    (build,) = {service["build"]["dockerfile"] for service in (ASSISTANT, TRAIN)}
    assert (ROOT / f"{build}.dockerignore").is_file()
    sources = [source for text in every("COPY") for source in text.split()[:-1]]
    files = [path for source in sources for path in [ROOT / source, *(ROOT / source).rglob("*")] if path.is_file()]
    names = [str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts]
    assert len(names) > 40
    assert [name for name in names if ignored(name)] == []
    others = [".git/config", ".venv/bin/python", "feedback.db", "tests/conftest.py", "assistant/__pycache__/web.pyc"]
    assert [name for name in others if not ignored(name)] == []


def test_the_image_runs_the_assistant_as_a_user_who_owns_the_home_and_is_not_root() -> None:
    user = every("USER")[-1]
    assert user not in ("root", "0")
    assert every("STOPSIGNAL") == ["SIGTERM"]
    assert json.loads(every("ENTRYPOINT")[-1]) == [*PROJECT["project"]["scripts"]]
    assert refusal(json.loads(every("CMD")[-1])) == ""
    (home,) = every("VOLUME")
    assert f"THUMBWISE_HOME={home}" in every("ENV")
    (made,) = [command for command in image_commands() if command[-1] == home]
    assert {f"--owner={user}", "--mode=0700"} <= set(made)
    names = [name for name, _ in instructions()]
    assert names.index("VOLUME") > names.index("USER") > max(i for i, name in enumerate(names) if name == "RUN")


# --- compose ---------------------------------------------------------------------------------------------


def test_the_two_services_are_one_image_that_is_built_here() -> None:
    assert ASSISTANT["image"] == TRAIN["image"]
    for service in (ASSISTANT, TRAIN):
        assert (DEPLOY / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]).is_file()
        assert service["pull_policy"] == "never"


def test_the_job_shares_the_assistants_network_and_home() -> None:
    assert ASSISTANT["network_mode"] == "host"  # it listens on loopback
    assert TRAIN["network_mode"] == "service:assistant"
    volume = f"home:{every('VOLUME')[0]}"
    assert [service["volumes"] for service in (ASSISTANT, TRAIN)] == [[volume], [volume]]
    assert "home" in COMPOSE["volumes"]


def test_the_assistant_stays_up_and_the_job_runs_only_when_it_is_asked_for() -> None:
    assert ASSISTANT["restart"] == "unless-stopped"
    assert TRAIN["profiles"] == ["job"]
    assert TRAIN["restart"] == "no"
    assert TRAIN["depends_on"] == {"assistant": {"condition": "service_healthy"}}
    assert TRAIN["healthcheck"] == {"disable": True}
    assert not {"healthcheck", "profiles", "ports"} & set(ASSISTANT)  # its health check is the image's
    assert ASSISTANT["init"] is TRAIN["init"] is True
    assert TRAIN["command"] == unit("thumbwise-train.service")["Service"]["ExecStart"][0].split()[1:]
    assert refusal(TRAIN["command"]) == ""


def test_compose_accepts_its_file() -> None:
    if not shutil.which("docker") or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        pytest.skip("`docker compose` is not installed here")
    command = ["docker", "compose", "--file", DEPLOY / "compose.yaml", "--profile", "job", "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- systemd ---------------------------------------------------------------------------------------------


def test_every_unit_starts_a_command_that_exists() -> None:
    for name in UNITS:
        service = unit(name)["Service"]
        (line,) = service["ExecStart"]
        program, *arguments = shlex.split(line)
        assert program.removeprefix(INSTALLED) in PROJECT["project"]["scripts"]
        assert program.startswith(service["WorkingDirectory"][0] + "/")
        assert refusal(arguments) == "", line
    assert refusal(["train", "--resume"]) == ""


def test_the_job_is_started_by_the_timer_beside_a_running_assistant() -> None:
    timer = unit("thumbwise-train.timer")
    assert timer["Timer"].get("Unit", ["thumbwise-train.service"]) == ["thumbwise-train.service"]
    assert timer["Timer"]["Persistent"] == ["true"]
    assert timer["Install"]["WantedBy"] == ["timers.target"]
    job = unit("thumbwise-train.service")
    assert job["Unit"]["Requires"] == job["Unit"]["After"] == ["thumbwise.service"]
    assert job["Service"]["Type"] == ["oneshot"]
    assert "Install" not in job  # else it could be enabled, and run at every boot
    assert unit("thumbwise.service")["Service"]["Restart"] == ["always"]


def test_the_two_units_differ_only_in_how_they_start_and_end() -> None:
    own = {"Type", "ExecStart", "ExecStartPre", "Nice", "Restart", "RestartSec", "KillMode", "OOMPolicy"}
    own |= {"TimeoutStartSec", "WatchdogSec"}
    one, other = ({k: v for k, v in unit(name)["Service"].items() if k not in own} for name in UNITS)
    assert one == other
    assert one["User"] == ["thumbwise"]


def test_the_units_lock_away_everything_but_what_vllm_needs() -> None:
    service = unit("thumbwise.service")["Service"]
    for key, value in {"ProtectSystem": "strict", "NoNewPrivileges": "yes", "PrivateTmp": "yes"}.items():
        assert service[key] == [value]
    assert not {"MemoryDenyWriteExecute", "ProcSubset", "PrivateNetwork"} & set(service)
    assert {"AF_UNIX", "AF_INET", "AF_NETLINK"} <= set(service["RestrictAddressFamilies"][0].split())
    state = f"/var/lib/{service['StateDirectory'][0]}"
    places = dict(value.split("=", 1) for value in service["Environment"])
    assert {"THUMBWISE_HOME", "HOME", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR"} <= set(places)
    assert [place for place in places.values() if place != state and not place.startswith(f"{state}/")] == []


def test_everybody_waits_as_long_as_a_stop_may_take() -> None:
    grace = int(unit("thumbwise.service")["Service"]["TimeoutStopSec"][0])
    assert ASSISTANT["stop_grace_period"] == TRAIN["stop_grace_period"] == f"{grace}s"
    (pages,) = re.findall(r"timeout_graceful_shutdown=(\d+)", (ROOT / "assistant" / "cli" / "serve.py").read_text())
    assert grace > Settings.model_fields["drain_seconds"].default + int(pages) + Engine.grace  # replies, pages, vLLM


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("`systemd-analyze` is not installed here")
    for name in (*UNITS, "thumbwise-train.timer"):  # with this environment's programs, since those must be there
        text = (DEPLOY / name).read_text().replace(INSTALLED, f"{Path(sys.executable).parent}/")
        (tmp_path / name).write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", *sorted(tmp_path.iterdir())]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert (done.returncode, [line for line in done.stdout.splitlines() if "thumbwise" in line]) == (0, [])


# --- settings and health ---------------------------------------------------------------------------------


def test_every_setting_in_these_files_exists() -> None:
    known = {PREFIX + name.replace(".", "__").upper() for name, _, _ in describe()} | NOT_SETTINGS
    found = {name for path in DEPLOY.iterdir() for name in re.findall(rf"\b{PREFIX}\w+", path.read_text())}
    assert "THUMBWISE_HOME" in found
    assert found <= known


def health_check() -> list[str]:
    """Return the image's health check, to be run by this Python."""
    line = every("HEALTHCHECK")[-1]
    return [sys.executable, *json.loads(line[line.index("[") :])[1:]]


def wait_for_assistant(limit: str) -> list[str]:
    """Return what the timer's round does first, with this Python and another limit than many minutes."""
    (line,) = unit("thumbwise-train.service")["Service"]["ExecStartPre"]
    command = [word.replace("$$", "$").replace(f"{INSTALLED}python", sys.executable) for word in shlex.split(line)]
    assert command[0].endswith("/timeout")
    return [command[0], limit, *command[2:]]


@contextmanager
def answering(home: Home, status: int) -> Iterator[list[str]]:
    """Hold the home's lock and answer every request with `status`; yields the paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *arguments: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server, HomeLock(home) as lock:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        lock.announce(f"http://127.0.0.1:{server.server_port}")
        yield asked
        server.shutdown()


def status_of(command: list[str], home: Home) -> int:
    env = {**os.environ, "THUMBWISE_HOME": str(home.root)}
    return subprocess.run(command, env=env, capture_output=True, check=False).returncode


def test_the_health_check_asks_the_assistant_that_holds_the_home(tmp_path: Path) -> None:
    home = Home.find(tmp_path)
    assert status_of(health_check(), home) != 0
    with answering(home, 200) as asked:
        assert status_of(health_check(), home) == 0
    assert asked == ["/health/live"]
    with answering(home, 500):
        assert status_of(health_check(), home) != 0


def test_the_timers_round_waits_until_the_assistant_is_ready(tmp_path: Path) -> None:
    home = Home.find(tmp_path)
    with answering(home, 200) as asked:
        assert status_of(wait_for_assistant("60"), home) == 0
    assert asked == ["/health/ready"]
    with answering(home, 503):
        assert status_of(wait_for_assistant("2"), home) == 124  # cut off, still waiting


def test_the_assistant_has_the_pages_that_these_files_and_the_readme_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thumbwise.serving.assistant import Assistant
    from thumbwise.web import create_api

    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    home = Home.find(tmp_path)
    assistant = Assistant(home, Settings.load(home))
    paths = {getattr(route, "path", "") for route in create_api(assistant).routes}
    assistant.store.close()
    text = "\n".join(path.read_text() for path in DEPLOY.iterdir())
    named = set(re.findall(r"(?<![\w/.])/(?:health/\w+|metrics)\b", text))
    assert named == {"/health/live", "/health/ready", "/metrics"}
    assert named <= paths


def readme_commands() -> list[list[str]]:
    """Return the words of every line and every span of code in the README."""
    code = re.findall(r"^ {4}(\S.*)$|`([^`\n]+)`", GUIDE, re.MULTILINE)
    return [shlex.split(line or span) for line, span in code]


def test_the_readme_names_only_commands_that_exist() -> None:
    said = {}
    for words in readme_commands():
        for place, word in enumerate(words[:-1]):
            if re.fullmatch(r"(\S*/bin/)?thumbwise", word) and re.match(r"[a-z]", words[place + 1]):
                said[" ".join(words)] = refusal(words[place + 1 :])
    assert {line: why for line, why in said.items() if why} == {}
    assert len(said) >= 5


def test_the_readme_names_only_files_services_and_profiles_that_exist() -> None:
    lines = [words for words in readme_commands() if {"docker", "compose", "-f"} <= set(words)]
    assert len(lines) >= 4
    for words in lines:
        assert words[words.index("-f") + 1].endswith("deploy/compose.yaml")
        if "run" in words:
            assert words[words.index("--profile") + 1] in TRAIN["profiles"]
            assert words[-1] in COMPOSE["services"]
        if "exec" in words:
            assert words[words.index("exec") + 1] in COMPOSE["services"]
    for path in DEPLOY.iterdir():
        assert path.name == "README.md" or f"`{path.name}`" in GUIDE, path.name
    copied = re.findall(r"/opt/thumbwise/(deploy/thumbwise\S+)", GUIDE)
    assert {path.name for pattern in copied for path in ROOT.glob(pattern)} == {*UNITS, "thumbwise-train.timer"}
