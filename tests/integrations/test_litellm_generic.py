"""LiteLLM's generic guardrail, which asks a server of ours."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from pages import block
from served import running

pytest.importorskip("litellm", reason="LiteLLM is not installed: scripts/test-integrations litellm")
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # and not one of the internet

import yaml
from litellm.exceptions import GuardrailRaisedException
from litellm.proxy.guardrails.guardrail_hooks.generic_guardrail_api import GenericGuardrailAPI


def test_the_generic_guardrail_asks_a_server(bundle: Path, letters: tuple[str, str]) -> None:
    safe, harmful = letters
    given = yaml.safe_load(block("integrations.md", "LiteLLM over HTTP", "yaml"))["guardrails"][0]
    settings = {k: v for k, v in given["litellm_params"].items() if k != "guardrail"}
    called = {"id": "1", "type": "function", "provider_specific_fields": {"thought_signature": ""}}
    with running({"guard": str(bundle)}) as server:
        settings |= {"api_base": server.url, "event_hook": settings.pop("mode")}
        guardrail = GenericGuardrailAPI(guardrail_name="siren", **settings)

        def apply(text: str, argument: str) -> Any:
            call = {**called, "function": {"name": "f", "arguments": argument}}
            inputs: Any = {"texts": [text], "tool_calls": [call]}
            return asyncio.run(guardrail.apply_guardrail(inputs, {}, "response"))

        assert apply(safe, safe)["texts"] == [safe]
        for harm in ((harmful, safe), (safe, harmful)):
            with pytest.raises(GuardrailRaisedException, match="harmful: score"):
                apply(*harm)
