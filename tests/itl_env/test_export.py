"""Exports hold exactly the facts of their rows, and a file is there whole or not at all."""

import json

import datasets
import pyarrow.parquet as pq
import pytest

from itl_env.dialogue import statement
from itl_env.errors import ConfigError
from itl_env.export import (
    biography,
    to_dataset,
    write_biographies,
    write_jsonl,
    write_parquet,
)
from itl_env.facts import ATTRIBUTES, people

WRITERS = [write_jsonl, write_parquet, write_biographies]
ALBUMS = [
    {"title": "Tosca", "artist": "Giacomo Puccini", "label": None},
    {"title": 'Ágætis "byrjun"', "artist": "Sigur Rós", "label": "Smekkleysa"},
]


@pytest.fixture
def world():
    """A few people and their rows."""
    persons = list(people(50, seed=3))
    return persons, [person._asdict() for person in persons]


def test_jsonl_gives_back_the_rows(tmp_path, world):
    persons, rows = world
    path = tmp_path / "people.jsonl"
    assert write_jsonl(iter(persons), path) == 50
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == rows


def test_parquet_gives_back_the_rows(tmp_path, world):
    persons, rows = world
    path = tmp_path / "people.parquet"
    assert write_parquet(iter(persons), path) == 50
    assert pq.read_table(path).to_pylist() == rows


def test_a_dataset_gives_back_the_rows(world):
    persons, rows = world
    dataset = to_dataset(iter(persons))
    assert isinstance(dataset, datasets.Dataset)
    assert dataset.column_names == ["name", *ATTRIBUTES]
    assert dataset.to_list() == rows
    assert dataset.filter(lambda row: row["name"] == persons[7].name)[0] == rows[7]


def test_rows_of_any_table_export_with_unknown_values_and_other_scripts(tmp_path):
    write_jsonl(ALBUMS, tmp_path / "albums.jsonl")
    lines = (tmp_path / "albums.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == ALBUMS
    assert "Ágætis" in lines[1]
    write_parquet(ALBUMS, tmp_path / "albums.parquet")
    assert pq.read_table(tmp_path / "albums.parquet").to_pylist() == ALBUMS
    assert to_dataset(ALBUMS).to_list() == ALBUMS


def test_a_biography_states_the_four_facts_of_a_person(tmp_path, world):
    persons, rows = world
    path = tmp_path / "biographies.txt"
    assert write_biographies(iter(persons), path) == 50
    lines = path.read_text("utf-8").splitlines()
    assert lines == [biography(row) for row in rows]
    for person, line in zip(persons, lines, strict=True):
        sentences = [statement(fact.attribute, fact.name, fact.value) for fact in person.facts()]
        assert line == " ".join(sentences)


def test_a_biography_leaves_out_what_is_not_known():
    row = {"name": "Ann Lee", "birth_place": None, "occupation": "actor"}
    assert biography(row) == statement("occupation", "Ann Lee", "actor")


def test_batches_keep_all_rows_in_order(tmp_path, monkeypatch, world):
    monkeypatch.setattr("itl_env.export._BATCH", 7)
    persons, rows = world
    write_parquet(persons, tmp_path / "people.parquet")
    assert pq.ParquetFile(tmp_path / "people.parquet").num_row_groups == 8
    assert pq.read_table(tmp_path / "people.parquet").to_pylist() == rows
    assert to_dataset(persons).to_list() == rows


@pytest.mark.parametrize("write", WRITERS)
def test_an_export_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, write, world):
    def failing():
        yield from world[0]
        raise RuntimeError("lost the source")

    path = tmp_path / "people"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="lost the source"):
        write(failing(), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]

    write(world[0], str(path))
    assert path.read_bytes() != b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("write", WRITERS)
def test_a_path_that_cannot_be_written_is_named_in_one_sentence(tmp_path, write, world):
    with pytest.raises(ConfigError, match=r"there is no folder .*absent, create it first\.$"):
        write(world[0], tmp_path / "absent" / "people")
    with pytest.raises(ConfigError, match="it is a folder"):
        write(world[0], tmp_path)


@pytest.mark.parametrize("export", [to_dataset, lambda rows: write_parquet(rows, "unused")])
def test_columns_must_exist_and_agree(tmp_path, monkeypatch, export):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no rows"):
        export([])
    with pytest.raises(ConfigError, match="found name, job after name, city"):
        export([{"name": "Ann Lee", "city": "Rome"}, {"name": "Bo Lee", "job": "cook"}])
    assert list(tmp_path.iterdir()) == []
