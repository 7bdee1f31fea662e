"""What goes over the wire to the loopback server, and what it refuses."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib

import numpy as np
import pytest
import requests
from dwave.cloud import Client

from qubo_compress.testing.loopback_leap import Chip, qpu


def test_large_uploads_go_in_parts(leap):
    size = 6 * 2**20
    with Client(**leap.client_options) as client:
        before = len(leap.requests)
        client.upload_problem_encoded(np.random.default_rng(0).bytes(size)).result(timeout=600)
    sent = [request for request in leap.requests[before:] if request.method == "PUT"]
    assert len(sent) == 2 and sum(request.bytes for request in sent) == size
    assert all(request.status == 200 for request in leap.requests[before:])


def post(running, method, path, body=b"", **headers):
    response = requests.request(
        method, running.endpoint + path, data=body, headers={"X-Auth-Token": running.token, **headers}, timeout=600
    )
    return response.status_code, response.json()


def test_uploads_are_checked(leap):
    def part(upload, number, data, claimed=None):
        digest = base64.b64encode(hashlib.md5(claimed or data).digest()).decode()
        return post(leap, "PUT", f"bqm/multipart/{upload}/part/{number}", data, **{"Content-MD5": digest})

    upload = post(leap, "POST", "bqm/multipart", b'{"size": 4}')[1]["id"]
    assert part(upload, 1, b"ab", claimed=b"ac")[0] == 400
    assert part(upload, 1, b"ab") == (200, {})
    assert part("nothing", 1, b"ab")[0] == 404
    combined = json.dumps({"checksum": hashlib.md5(hashlib.md5(b"ab").digest()).hexdigest()}).encode()
    status, message = post(leap, "POST", f"bqm/multipart/{upload}/combine", combined)
    assert status == 400 and "4 were announced" in message["error_msg"]
    assert post(leap, "POST", f"bqm/multipart/{upload}/combine", b'{"checksum": "0"}')[0] == 400
    assert post(leap, "GET", f"bqm/multipart/{upload}/status")[1]["parts"][0]["part_number"] == 1
    assert post(leap, "POST", "bqm/multipart", b'{"size": "x"}')[0] == 400
    job = {"solver": {"name": "loopback_hybrid_bqm"}, "type": "bqm", "data": {"format": "ref", "data": upload}}
    status, answers = post(leap, "POST", "problems/", json.dumps([job]).encode())
    assert status == 200 and "not complete" in answers[0]["error_msg"]


def test_submissions_are_checked_one_by_one(leap):
    good = {"solver": {"name": "loopback_hybrid_bqm"}, "type": "bqm", "data": {"format": "bq", "data": {}}}
    jobs = [{}, good, {**good, "type": "cqm"}, {**good, "solver": {"name": "nothing"}}]
    jobs.append({**good, "solver": {"name": "loopback_zephyr4", "version": {"graph_id": "old"}}, "type": "ising"})
    packed = zlib.compress(json.dumps(jobs).encode())
    status, answers = post(leap, "POST", "problems/", packed, **{"Content-Encoding": "deflate"})
    assert status == 200
    assert [answer["error_code"] for answer in answers] == [400, 400, 400, 404, 404]
    for expected, answer in zip(
        ["has solver", "uploaded first", "does not take", "no solver", "working graph"], answers, strict=True
    ):
        assert expected in answer["error_msg"]
    assert post(leap, "POST", "problems/", b"{", **{"Content-Encoding": "deflate"})[0] == 400
    assert post(leap, "POST", "problems/", b"{")[0] == 400
    assert post(leap, "GET", "problems/?id=unknown")[0] == 404
    assert post(leap, "GET", "nowhere")[0] == 404
    assert post(leap, "DELETE", "problems/", b'["unknown"]')[1][0]["error_code"] == 404


def test_qp_arrays_of_wrong_length_are_refused():
    properties = Chip("zephyr", 1).record()["properties"]
    empty = base64.b64encode(b"").decode()
    full = base64.b64encode(np.zeros(len(properties["qubits"])).tobytes()).decode()
    unused = base64.b64encode(np.full(len(properties["qubits"]), np.nan).tobytes()).decode()
    for data, message in (
        ({"format": "bq"}, "format"),
        ({"format": "qp", "lin": empty, "quad": empty}, "linear"),
        ({"format": "qp", "lin": full, "quad": empty}, "quadratic"),
        ({"format": "qp", "lin": unused, "quad": empty}, "no qubit"),
    ):
        with pytest.raises(qpu.ProblemRejected, match=message):
            qpu.decode_problem(data, properties, "ising")
