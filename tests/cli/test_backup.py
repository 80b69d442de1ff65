"""A copy of the database while others write it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from fakes import asker
from stored import reply, thumb

from thumbwise.cli.main import main
from thumbwise.errors import ThumbwiseError
from thumbwise.feedback.store import Store
from thumbwise.serving.assistant import Assistant


def test_a_copy_is_whole_and_of_one_moment_while_others_write(store: Store, tmp_path: Path) -> None:
    message = reply(store)
    with store.write():  # somebody is at it; what is not committed is not in the copy
        store.db.execute("UPDATE replies SET text = 'half'")
        store.backup(tmp_path / "copy.db")
    store.add_feedback(asker(), "later", thumb(message))
    with closing(Store(tmp_path / "copy.db")) as copy:
        assert copy.rows("PRAGMA integrity_check") == [{"integrity_check": "ok"}]
        assert copy.reply(message, "local").text == "Because."
        assert copy.counts() == {"untied_pairs": 0}
    assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600


def test_what_is_there_is_not_written_over_and_a_bad_place_is_a_sentence(store: Store, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    with pytest.raises(ThumbwiseError, match="name another file"):
        store.backup(tmp_path / "there")
    with pytest.raises(ThumbwiseError, match="could not be written"):
        store.backup(tmp_path / "no such folder" / "copy.db")
    assert (tmp_path / "there").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} <= {"there", "feedback.db", "feedback.db-wal", "feedback.db-shm"}


async def test_a_running_assistant_makes_it_for_its_operator_alone(
    http: httpx.AsyncClient, assistant: Assistant, tmp_path: Path
) -> None:
    body = {"path": str(tmp_path / "copy.db")}
    assert (await http.post("/ops/api/backup", json=body)).status_code == 401
    operator = {"Authorization": f"Bearer {assistant.operator_token}"}
    assert (await http.post("/ops/api/backup", json=body, headers=operator)).status_code == 201
    assert (await http.post("/ops/api/backup", json=body, headers=operator)).status_code == 409
    Store(tmp_path / "copy.db").close()


def test_the_command_makes_it_where_no_assistant_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THUMBWISE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["backup", "copy.db"])
    assert done.exit_code == 0, done.output
    assert str(tmp_path / "copy.db") in done.stdout.replace("\n", "")
    Store(tmp_path / "copy.db").close()
    assert CliRunner().invoke(main, ["backup", "copy.db"]).exit_code == 1
