"""The server's application: answers are the model's own, and what is wrong is said."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import recbole_escm2

pytest.importorskip("fastapi")
from new_rows import QUICK, frame_of, fresh_copy
from starlette.testclient import TestClient

from recbole_escm2.quick_start import run
from recbole_escm2.serve.http.app import make_app
from recbole_escm2.serve.http.served import load
from recbole_escm2.serve.http.service import Limits, Service
from recbole_escm2.serve.http.workers import OwnThread

TASKS = ["pctr", "pcvr", "pctcvr"]
GOOD = {
    "user_id": "u1",
    "item_id": "i2",
    "hour": 3,
    "age": 31.5,
    "category": "c1",
    "tags": ["t0", "t1"],
}


@pytest.fixture(scope="module")
def served(done):
    return load(str(done.folder), None, "cpu", {})


@pytest.fixture
def service(served):
    return Service([OwnThread(served)], Limits())


@pytest.fixture
def client(service):
    with TestClient(make_app(service)) as client:
        yield client


def rows_of(frame: pd.DataFrame) -> list[dict]:
    """Rows of ``tiny`` as a client writes them."""
    rows = json.loads(frame[[*GOOD]].to_json(orient="records"))
    return [{**row, "tags": (row["tags"] or "").split()} for row in rows]


def asked(client, *rows, **changed):
    return client.post("/predict", json={"rows": [*rows] or [{**GOOD, **changed}]})


def posted(client, body: bytes | str):
    return client.post("/predict", content=body)


def test_answers_are_those_of_the_model_row_by_row(client, done):
    frame = done.frame[:1000]
    answer = asked(client, *rows_of(frame)).json()
    scorer = recbole_escm2.load(done.folder)
    got = pd.DataFrame(answer["rows"])
    assert np.array_equal(got[TASKS].astype(np.float32), scorer.predict(frame))
    quantiles = scorer.models[0].support
    pctr = got["pctr"].to_numpy(np.float32)  # which JSON has in as few digits as tell it
    share = (np.searchsorted(quantiles, pctr, side="right") - 1).clip(0) / 1000
    assert np.allclose(got["support"], share)
    assert got["valid"].tolist() == (pctr >= quantiles[50]).tolist()
    assert 0 < got["valid"].sum() < len(got)
    assert set(map(tuple, got["unknown"])) == {()}
    assert answer["model"] == client.get("/health").json()["digest"]


def test_support_is_that_of_the_command(client, done, tmp_path):
    from recbole_escm2.command_line import main

    done.frame[:500].to_csv(tmp_path / "new.csv", index=False)
    out = tmp_path / "scores.parquet"
    given = [f"--checkpoint={done.folder}", f"--data={tmp_path / 'new.csv'}", f"--out={out}"]
    assert main(["predict", *given, "--labels=False"]) == 0
    got = pd.DataFrame(asked(client, *rows_of(done.frame[:500])).json()["rows"])
    columns = [*TASKS, "support"]
    assert np.array_equal(got[columns].astype(np.float32), pd.read_parquet(out)[columns])


def test_unknown_values_are_told_and_scored_as_the_model_does(client, done):
    row = {**GOOD, "user_id": "nobody", "tags": ["t0", "new"]}
    frame = pd.DataFrame([{**row, "tags": "t0 new"}])
    answer = asked(client, GOOD, row).json()["rows"]
    assert answer[0]["unknown"] == []
    assert answer[1]["unknown"] == ["user_id", "tags"]
    expected = recbole_escm2.load(done.folder).predict(frame).iloc[0]
    assert answer[1]["pcvr"] == pytest.approx(expected["pcvr"], abs=1e-6)
    text = client.get("/metrics").text
    assert 'recbole_escm2_rows_with_unknown_total{field="tags"} 1.0' in text


@pytest.mark.parametrize(
    ("field", "ways"),
    [
        ("hour", [3, "3", 3.0]),
        ("age", [30, 30.0, "30", "30.0"]),
        ("tags", [["t1", "t2"], ["t1", None, "t2"]]),
        ("tags", [[], None]),
    ],
)
def test_a_value_means_the_same_however_it_is_written_and_whatever_stands_beside(
    client, field, ways
):
    alone = [asked(client, **{field: way}).json()["rows"][0] for way in ways]
    together = asked(client, *[{**GOOD, field: way} for way in ways]).json()["rows"]
    for answer in (*alone, *together):
        assert answer["unknown"] == []
        numbers = [answer[name] for name in (*TASKS, "support")]
        assert numbers == pytest.approx([alone[0][name] for name in (*TASKS, "support")])


def test_no_rows_are_answered_by_none(client):
    assert posted(client, '{"rows": []}').json()["rows"] == []


def test_labels_are_ignored(client):
    assert asked(client, **{"click": 1, "conversion": "x"}).status_code == 200


WRONG = [
    ("age", "old", "it is no number", "a number"),
    ("age", [1], "it is a list", "a number"),
    ("age", {"a": 1}, "it is an object", "a number"),
    ("age", 1e300, "a number must lie within", "a number"),
    ("age", "inf", "must lie within", "a number"),
    ("user_id", 1.5, "a token isn't a fraction", "a text"),
    ("user_id", ["u1"], "it is a list", "a text"),
    ("user_id", {"u": 1}, "it is an object", "a text"),
    ("user_id", "a\0b", "a NUL character", "a text"),
    ("tags", "t0 t1", "it is a text, and no list", "a list"),
    ("tags", 7, "it is a number, and no list", "a list"),
    ("tags", ["t0", ["t1"]], "it is a list", "a list"),
    ("tags", ["t0", "\0"], "a NUL character", "a list"),
]


@pytest.mark.parametrize(("field", "value", "problem", "expected"), WRONG)
def test_a_wrong_value_is_named_by_row_and_field(client, field, value, problem, expected):
    answer = asked(client, GOOD, {**GOOD, field: value}, GOOD)
    assert answer.status_code == 422
    content = answer.json()
    (fault,) = content["faults"]
    assert (fault["row"], fault["field"]) == (2, field)
    assert problem in fault["problem"]
    assert fault["expected"].startswith(expected)
    assert content["error"].startswith(f"row 2, field '{field}': ")
    assert problem in content["error"]


def test_what_a_row_lacks_or_has_too_much_is_named(client):
    lacking = {name: value for name, value in GOOD.items() if name != "age"}
    content = asked(client, GOOD, lacking, {**GOOD, "agee": 3}, 7).json()
    found = [(fault["row"], fault["field"], fault["problem"]) for fault in content["faults"]]
    assert found == [
        (2, "age", "the row lacks the field"),
        (3, "agee", "the model has no such field (did you mean age?)"),
        (4, "", "a row is an object with a value for each field"),
    ]
    assert content["error"].endswith("(2 more faults)")


def test_a_long_list_of_faults_is_cut(client):
    content = asked(client, *[{**GOOD, "age": "x" * 1000}] * 50).json()
    assert len(content["faults"]) == 20
    assert "(49 more faults)" in content["error"]
    assert len(content["faults"][0]["value"]) < 100


BODIES = [
    (b"", 400, "no JSON"),
    (b"\xff\xfe", 400, "no JSON"),
    (b"[" * 500_000, 400, "no JSON"),
    (b'{"rows":' * 100_000, 400, "no JSON"),
    (b'{"rows": [{"age": NaN}]}', 400, "no JSON"),
    (b'{"rows": [{"age": Infinity}]}', 400, "no JSON"),
    (b'{"rows": [{"age": 1e400}]}', 400, "no JSON"),
    (b'{"rows": [{"user_id": "\\ud800"}]}', 400, "no JSON"),
    (b'{"rows": [{"user_id": "\xed\xa0\x80"}]}', 400, "no JSON"),
    (b"null", 422, "the body is null"),
    (b"[]", 422, "the body is a list"),
    (b"{}", 422, "must have one key, rows"),
    (b'{"rows": {}}', 422, "must have one key, rows"),
    (b'{"rows": [], "more": 1}', 422, "must have one key, rows"),
    (b'{"rows": [], "rows": []}', 422, "the key 'rows' twice"),
    (b'{"rows": [{"age": 1, "age" : 2, "user_id": ":::"}]}', 422, "the key 'age' twice"),
    (b'{"rows": [[[[[[[{"a":1}]]]]]]]}', 422, "a row is an object"),
]


@pytest.mark.parametrize(("body", "status", "said"), BODIES)
def test_a_body_of_another_shape_is_refused_in_a_sentence(client, caplog, body, status, said):
    answer = posted(client, body)
    assert answer.status_code == status
    assert said in answer.json()["error"]
    assert not caplog.records


def raw(**values: str) -> str:
    """A request with a row, whose values are written as they are."""
    written = {name: json.dumps(value) for name, value in GOOD.items()} | values
    pairs = ", ".join(f'"{name}": {value}' for name, value in written.items())
    return f'{{"rows": [{{{pairs}}}]}}'


def test_whole_numbers_of_any_size_are_tokens_or_refused(client):
    for number in (2**63 - 1, 2**63, 2**64 - 1, -(2**63)):
        answer = posted(client, raw(user_id=str(number))).json()
        assert answer["rows"][0]["unknown"] == ["user_id"], number
    for number in (2**64, 10**40, -(10**40)):
        answer = posted(client, raw(user_id=str(number)))
        assert answer.status_code == 422
        assert "write it as a text" in answer.json()["error"]
    assert posted(client, raw(user_id="9" * 5000)).status_code in (400, 422)


def test_deep_values_are_refused_without_being_repeated(client):
    for value in ("[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900):
        for field in ("age", "user_id", "tags"):
            answer = posted(client, raw(**{field: value}))
            assert answer.status_code == 422
            assert len(answer.content) < 1000


def test_colons_in_texts_are_no_keys(client):
    assert asked(client, user_id=':":\\": "a": ').status_code == 200


class TestLimits:
    @pytest.fixture
    def client(self, served):
        limits = Limits(max_rows=3, max_body=2000, max_requests=1, timeout=0.3)
        self.service = Service([OwnThread(served)], limits)
        with TestClient(make_app(self.service)) as client:
            yield client

    def test_rows(self, client):
        assert asked(client, *[GOOD] * 3).status_code == 200
        answer = asked(client, *[GOOD] * 4)
        assert answer.status_code == 413
        assert "4 rows, and a request may have 3 (--max_rows)" in answer.json()["error"]

    @pytest.mark.parametrize("size", [2001, 7000, 8001, 1_000_000])
    @pytest.mark.parametrize("told", [True, False])
    def test_bytes(self, client, size, told):
        pieces = [b" " * 1000] * (size // 1000) + [b" " * (size % 1000)]
        answer = posted(client, b" " * size if told else iter(pieces))
        assert answer.status_code == 413
        assert "2,000 bytes (--max_body)" in answer.json()["error"]
        assert answer.headers["connection"] == "close"

    def test_compressed(self, client):
        headers = {"content-encoding": "gzip"}
        answer = client.post("/predict", content=b"x", headers=headers)
        assert answer.status_code == 415

    def test_time(self, client, served, monkeypatch):
        go_on = threading.Event()
        monkeypatch.setattr(served, "answers", lambda *_: go_on.wait(30))
        answer = asked(client)
        assert answer.status_code == 503
        assert "0.3 s (--timeout)" in answer.json()["error"]
        assert answer.headers["retry-after"] == "1"
        go_on.set()

    def test_a_body_that_does_not_come(self, served):
        async def receive():
            await asyncio.sleep(30)

        async def asked_slowly():
            sent = []

            async def send(message):
                sent.append(message)

            app = make_app(Service([OwnThread(served)], Limits(timeout=0.05)))
            scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
            await app({**scope, "query_string": b""}, receive, send)
            return sent

        sent = asyncio.run(asked_slowly())
        assert sent[0]["status"] == 408
        assert b"(--timeout)" in sent[1]["body"]

    def test_requests_at_once(self, served, monkeypatch):
        service = Service([OwnThread(served)], Limits(max_requests=2))
        begun, go_on = threading.Semaphore(0), threading.Event()
        own = served.answers

        def slowly(bodies, most):
            begun.release()
            go_on.wait(30)
            return own(bodies, most)

        monkeypatch.setattr(served, "answers", slowly)
        with TestClient(make_app(service)) as client, ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(asked, client) for _ in range(2)]
            begun.acquire()
            while service.active < 2:
                pass
            answer = asked(client)
            assert answer.status_code == 503
            assert "2 requests are at work" in answer.json()["error"]
            assert client.get("/health").status_code == 200  # which goes on meanwhile
            go_on.set()
            assert [one.result().status_code for one in waiting] == [200, 200]
            assert asked(client).status_code == 200


def test_a_fault_of_ours_is_in_the_log_and_not_in_the_answer(client, served, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("a secret")

    monkeypatch.setattr(served, "answers", broken)
    answer = asked(client)
    assert answer.status_code == 500
    assert answer.json() == {"error": "the server failed; its log says how"}
    assert "a secret" in caplog.text


def test_many_clients_each_get_their_own_answer(client, done):
    frames = [done.frame[start : start + 20] for start in range(0, 800, 20)]
    scorer = recbole_escm2.load(done.folder)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda own: asked(client, *rows_of(own)).json(), frames))
    for frame, answer in zip(frames, answers, strict=True):
        got = pd.DataFrame(answer["rows"])[TASKS].astype(np.float32)
        assert np.allclose(got, scorer.predict(frame), rtol=0, atol=1e-6)


class TestRequestsThatWaitTogether:
    """What comes while another one is at work is scored at once, and answered one by one."""

    @pytest.fixture
    def together(self, service, served, monkeypatch):
        """Answers to requests that all wait before the first is looked at; how many were joined."""
        own, joined = served.answers, []

        def seen(bodies, most):
            joined.append(len(bodies))
            return own(bodies, most)

        monkeypatch.setattr(served, "answers", seen)

        def call(*bodies: bytes) -> tuple[list, list[int]]:
            async def all_at_once():
                asked = (service.answer(body) for body in bodies)
                return await asyncio.gather(*asked, return_exceptions=True)

            return asyncio.run(all_at_once()), joined

        return call

    def test_each_has_the_answer_that_it_has_alone(self, together, client, done):
        rows = rows_of(done.frame[:9])
        bodies = [json.dumps({"rows": part}).encode() for part in (rows[:3], [], rows[3:], rows)]
        answers, joined = together(*bodies)
        assert joined == [4]
        for body, answer in zip(bodies, answers, strict=True):
            got, alone = json.loads(answer.body), posted(client, body).json()
            assert got["model"] == alone["model"]
            assert len(got["rows"]) == len(alone["rows"]) == answer.rows
            for mine, its in zip(got["rows"], alone["rows"], strict=True):
                assert mine == {
                    **its,
                    **{task: pytest.approx(its[task], abs=1e-6) for task in TASKS},
                }

    def test_what_is_wrong_with_one_is_its_own(self, together, client):
        good = json.dumps({"rows": [GOOD, {**GOOD, "user_id": "nobody"}]}).encode()
        wrong = json.dumps({"rows": [GOOD, {**GOOD, "age": "old"}]}).encode()
        answers, joined = together(good, b"{", wrong, good)
        assert joined == [4]
        first, unread, refused, last = answers
        assert first.body == last.body
        assert json.loads(first.body)["rows"][1]["unknown"] == ["user_id"]
        assert first.unknown["user_id"] == 1
        assert unread.status == 400
        assert refused.status == 422
        assert refused.error.startswith("row 2, field 'age': ")

    def test_a_fault_of_ours_is_that_of_one_request(self, together, served, monkeypatch):
        own = served._scored

        def broken(rows):
            if any(row["user_id"] == "bad" for row in rows):
                raise RuntimeError("a secret")
            return own(rows)

        monkeypatch.setattr(served, "_scored", broken)
        bodies = [
            json.dumps({"rows": [{**GOOD, "user_id": who}]}).encode() for who in ("u1", "bad")
        ]
        answers, _ = together(*bodies, bodies[0])
        assert isinstance(answers[1], RuntimeError)
        assert answers[0].rows == answers[2].rows == 1

    def test_no_more_than_some_bytes_are_joined(self, together, monkeypatch):
        from recbole_escm2.serve.http import service as module

        body = json.dumps({"rows": [GOOD]}).encode()
        monkeypatch.setattr(module, "_TOGETHER", 2 * len(body))
        assert together(*[body] * 5)[1] == [2, 2, 1]
        long = json.dumps({"rows": [GOOD] * 3}).encode()
        assert together(long, body)[1][3:] == [1, 1]

    def test_who_is_gone_is_not_scored(self, service, served, monkeypatch):
        seen, go_on = [], threading.Event()
        own = served.answers

        def slowly(bodies, most):
            seen.append(len(bodies))
            go_on.wait(30)
            return own(bodies, most)

        monkeypatch.setattr(served, "answers", slowly)
        body = json.dumps({"rows": [GOOD]}).encode()

        async def one_gives_up():
            asked = [asyncio.create_task(service.answer(body)) for _ in range(1)]
            while not seen:
                await asyncio.sleep(0.001)
            asked += [asyncio.create_task(service.answer(body)) for _ in range(3)]
            await asyncio.sleep(0.01)
            asked[2].cancel()
            await asyncio.sleep(0.01)
            go_on.set()
            return await asyncio.gather(*asked, return_exceptions=True)

        answers = asyncio.run(one_gives_up())
        assert seen == [1, 2]
        assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [
            *[False, False],
            *[True, False],
        ]


class TestWhatIsTold:
    def test_health_when_stopping(self, client, service):
        assert client.get("/health").json()["status"] == "ok"
        service.draining = True
        answer = client.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (503, "stopping")

    def test_metrics(self, client):
        asked(client, GOOD, GOOD)
        asked(client, age="old")
        text = client.get("/metrics").text
        assert 'recbole_escm2_requests_total{code="200"} 1.0' in text
        assert 'recbole_escm2_requests_total{code="422"} 1.0' in text
        assert "recbole_escm2_rows_total 2.0" in text
        assert "recbole_escm2_requests_active 0.0" in text

    def test_model(self, client, service):
        content = client.get("/model").json()
        assert content["model"] == "ESCM2_DR"
        assert content["limits"] == vars(service.limits)
        fields = {field.pop("name"): field for field in content["fields"]}
        assert {*fields} == {*GOOD}
        assert fields["tags"]["kind"] == "token_seq"
        assert set(fields["category"]["choices"]) == {f"c{number}" for number in range(5)}
        row = {name: field["choices"][0] for name, field in fields.items()}
        row["tags"] = fields["tags"]["choices"][:2]
        assert asked(client, row).json()["rows"][0]["unknown"] == []

    @pytest.mark.parametrize("scaled", ["normalize_field", "none", "TIME_FIELD"])
    def test_a_number_is_proposed_as_rows_have_it(self, data_path, tmp_path, scaled):
        """And not as a model reads it."""
        folder = fresh_copy(data_path, tmp_path)
        places = {"data_path": str(folder.parent), "output_dir": str(tmp_path / "output")}
        own = {"normalize_field": ["age"], "TIME_FIELD": "age", "none": None}[scaled]
        settings = {**QUICK, **places, **({} if own is None else {scaled: own})}
        ran = run("ESMM", "tiny", config_dict=settings)["run_dir"]
        fields = load(str(ran), None, "cpu", {}).told.about(choices=True)["fields"]
        (proposed,) = next(field["choices"] for field in fields if field["name"] == "age")
        ages = frame_of(folder)["age"]
        assert ages.quantile(0.4) < proposed < ages.quantile(0.6)

    def test_nothing_of_train_where_that_is_wanted(self, service):
        with TestClient(make_app(service, choices=False)) as client:
            text = client.get("/model").text + client.get("/openapi.json").text
        assert "choices" not in text
        assert '"c1"' not in text

    def test_the_interface_is_described(self, client):
        content = client.get("/openapi.json").json()
        row = content["components"]["schemas"]["Request"]["properties"]["rows"]["items"]
        assert {*row["properties"]} == {*GOOD} == {*row["required"]}
        answers = content["paths"]["/predict"]["post"]["responses"]
        assert {"200", "400", "413", "422", "503"} <= {*answers}
        scores = content["components"]["schemas"]["Answer"]["properties"]["rows"]["items"]
        assert {*scores["properties"]} == {*asked(client).json()["rows"][0]}

    @pytest.mark.parametrize("path", ["/docs", "/redoc", "/../setup.cfg", "/page.py", "/%00"])
    def test_there_is_nothing_else(self, client, path):
        answer = client.get(path)
        assert answer.status_code == 404
        assert "POST /predict" in answer.json()["error"]

    def test_another_method(self, client):
        answer = client.get("/predict")
        assert answer.status_code == 405
        assert answer.headers["allow"] == "POST"


class TestWatch:
    def watched(self, served, *steps, monkeypatch):
        """The service after a file has changed as often as there are steps: models, or errors."""
        from recbole_escm2.serve.http import service as module

        monkeypatch.setattr(module, "_POLL", 0.001)
        service = Service([OwnThread(served)], Limits())
        left = [*steps]
        signatures = iter([((number, 0, 0),) for number in range(len(steps))])
        last = [served.told.signature]

        def look():
            last[0] = next(signatures, last[0])
            return last[0]

        async def until_done():
            def load_next():
                step = left.pop(0)
                if isinstance(step, Exception):
                    raise step
                return [OwnThread(step)]

            task = asyncio.create_task(service.watch(look, load_next))
            while left and not task.done():
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)
            assert not task.done()
            task.cancel()

        asyncio.run(until_done())
        return service

    def test_broken_files_keep_the_old_model_and_say_so(self, served, monkeypatch, caplog):
        steps = recbole_escm2.errors.UsageError("it is damaged"), RuntimeError("odd")
        service = self.watched(served, *steps, monkeypatch=monkeypatch)
        assert service.told is served.told
        assert service.reload_error == "RuntimeError: odd"
        assert "goes on: it is damaged" in caplog.text
        with TestClient(make_app(service)) as client:
            assert client.get("/health").json()["reload_error"] == "RuntimeError: odd"
            assert asked(client).status_code == 200
            assert 'model_loads_total{outcome="failed"} 2.0' in client.get("/metrics").text

    def test_a_good_file_after_a_broken_one(self, served, monkeypatch, done):
        new = load(str(done.folder), None, "cpu", {})
        new.told = replace(new.told, signature=((1, 0, 0),))
        steps = recbole_escm2.errors.UsageError("it is damaged"), new
        service = self.watched(served, *steps, monkeypatch=monkeypatch)
        assert service.told is new.told
        assert service.reload_error is None
