"""Requests that nobody thought of: schemathesis writes them from our own OpenAPI document."""

from __future__ import annotations

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from server.toys import KEY, Server


def test_no_request_is_a_failure_of_the_server(server: Server) -> None:
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {KEY}"
        document = session.get(f"{server.address}/openapi.json").json()
        operations = [result.ok() for result in schemathesis.openapi.from_dict(document).get_all_operations()]
        assert len(operations) > 15

        @given(st.one_of(*(operation.as_strategy() for operation in operations)))
        @settings(max_examples=60, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        def never_fails(case: schemathesis.Case) -> None:
            response = case.call(base_url=server.address, session=session)
            assert response.status_code < 500, response.text

        never_fails()
