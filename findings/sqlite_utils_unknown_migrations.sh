#!/usr/bin/env bash
# sqlite-utils 4.2.1: `Migrations.apply` opens a database that a newer program has migrated, without a word.
#
# The table `_sqlite_migrations` names what was applied. Names that the program does not know are ignored. So an older
# program, started by mistake after a newer one, writes rows by rules that the schema no longer has.
# Wanted: a way to refuse, or a warning.
# What helps: compare the names in `_sqlite_migrations` with those of the set before `apply`.
#
# Seen: the older set, with one migration of two, applies without an error, and its INSERT leaves the new column NULL.
#
# Exits 0 while the older program is let in, 1 once it is not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install sqlite-utils==4.2.1
"$folder/venv/bin/python" - "$folder/notes.db" <<'PY'
import sys

from sqlite_utils import Database, Migrations


def program(newer):
    migrations = Migrations("notes")

    @migrations()
    def m001_first(db):
        db.execute("CREATE TABLE notes (text TEXT)")

    if newer:

        @migrations()
        def m002_owner(db):
            db.execute("ALTER TABLE notes ADD COLUMN owner TEXT")

    return migrations


program(newer=True).apply(Database(sys.argv[1]))
db = Database(sys.argv[1])
older = program(newer=False)
older.apply(db)
db.table("notes").insert({"text": "written by the older program"})
known = {row["name"] for row in db.query("SELECT name FROM _sqlite_migrations WHERE migration_set = 'notes'")}
rows = list(db.query("SELECT * FROM notes"))
print("applied:", sorted(known), "rows:", rows)
sys.exit(0 if known == {"m001_first", "m002_owner"} and rows[0]["owner"] is None else 1)
PY
