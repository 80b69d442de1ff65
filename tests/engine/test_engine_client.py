"""The client against canned answers of a stub server, and against the session's vLLM."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import torch
from canned_engine import ASK, DONE, SAMPLING, event, read, stub
from tiny_engine import TinyEngine
from tiny_model import make_token_adapter

from thumbwise.engine.client import Chunk, EngineClient, Sampling
from thumbwise.errors import EngineFailed, EngineUnavailable, ThumbwiseError
from thumbwise.names import BASE


async def test_line_separators_inside_a_reply_do_not_cut_it(tmp_path):
    text = "one\u2028two\u0085three\u2029four\x0bfive"
    async with stub(tmp_path, event(text) + event(reason="stop") + DONE) as (client, _):
        assert "".join(chunk.text for chunk in await read(client)) == text


async def test_a_load_that_vllm_says_nothing_of_is_not_the_versions_fault(tmp_path):
    async with stub(tmp_path, b"", kind="application/json", hangs=True) as (client, _):
        assert await client.alive()
        with pytest.raises(EngineFailed, match=r"sent nothing for 0\.3 seconds") as caught:
            await client.load_adapter("policy-0001", tmp_path)
    assert caught.value.status == 502


@pytest.mark.parametrize("answer", [b"{}", b'{"data": [{"id": "thumbwise"}]}'])
async def test_what_is_no_vllm_is_said_to_be_none(tmp_path, answer):
    async with stub(tmp_path, answer, kind="application/json") as (client, _):
        with pytest.raises(EngineFailed, match="does not list its models as vLLM does"):
            await client.adapters()


async def test_every_request_names_the_model_and_every_sampling_field(tmp_path):
    async with stub(tmp_path, event(reason="stop") + DONE) as (client, asked):
        await read(client, sampling=Sampling(0.7, 9, stop=("\n",), seed=3))
    body = json.loads(asked[0])
    wanted = {"model": BASE, "temperature": 0.7, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "n": 1, "seed": 3}
    wanted |= {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "stop": ["\n"]}
    wanted |= {"max_completion_tokens": 9, "stream": True, "return_token_ids": True, "messages": ASK}
    assert {key: body.get(key) for key in wanted} == wanted


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (event("half a rep"), "cut the reply off"),
        (event("half") + DONE, "cut the reply off"),
        (event("half") + b'data: {"error": {"message": "EngineCore\\ndied"}}\n\n' + DONE, "EngineCore died."),
        (event("x", model="policy-0001-abc"), "policy-0001-abc where policy-0000 was asked for"),
        (event("x", reason="abort") + DONE, "abort"),
    ],
)
async def test_a_reply_that_is_cut_or_wrong_is_an_engine_failure(tmp_path, body, says):
    async with stub(tmp_path, body) as (client, _):
        with pytest.raises(EngineFailed, match=says):
            await read(client)


async def test_a_silent_stream_is_given_up(tmp_path):
    async with stub(tmp_path, event("a"), hangs=True) as (client, _):
        with pytest.raises(EngineFailed, match="sent nothing"):
            await read(client)


@pytest.mark.parametrize("how", ["leave the loop", "cancel the task"])
async def test_leaving_a_stream_closes_its_connection(tmp_path, how):
    async with stub(tmp_path, event("a"), hangs=True) as (client, asked):

        async def leave() -> None:
            async with contextlib.aclosing(client.chat(BASE, ASK, SAMPLING)) as chunks:
                async for _ in chunks:
                    if how == "leave the loop":
                        break
                    asyncio.current_task().cancel()

        await asyncio.wait([asyncio.create_task(leave())])
        while asked[-1] != b"the client left":
            await asyncio.sleep(0.01)
    assert len(asked) == 2


async def test_a_missing_socket_and_a_dead_one_mean_unavailable(tmp_path):
    client = EngineClient(uds=tmp_path / "nobody")
    assert await client.alive() is False
    with pytest.raises(EngineUnavailable, match="starting or has stopped"):
        await read(client)
    async with stub(tmp_path, DONE):
        pass
    with pytest.raises(EngineUnavailable):
        await EngineClient(uds=tmp_path / "s").adapters()


@pytest.mark.parametrize(
    ("status", "error", "code"),
    [
        ("400 Bad Request", ThumbwiseError, 400),
        ("404 Not Found", EngineFailed, 502),
        ("500 Internal Server Error", EngineFailed, 502),
        ("503 Service Unavailable", EngineUnavailable, 503),
    ],
)
async def test_refusals_carry_vllms_sentence_on_one_line(tmp_path, status, error, code):
    body = json.dumps({"error": {"message": "the prompt\nis too long", "code": 1}}).encode()
    async with stub(tmp_path, body, status, "application/json") as (client, _):
        with pytest.raises(ThumbwiseError, match=r"the prompt is too long\.$") as caught:
            await read(client)
    assert (type(caught.value), caught.value.status) == (error, code)


@pytest.mark.parametrize("value", ["NaN", "null"])
async def test_a_log_probability_that_is_no_number_is_an_engine_failure(tmp_path, value):
    rows = f'{{"token_id:1": -0.5, "token_id:2": {value}}}'
    body = f'{{"model": "{BASE}", "choices": [{{"index": 0, "logprobs": {{"top_logprobs": [{rows}]}}}}]}}'
    async with stub(tmp_path, body.encode(), kind="application/json") as (client, _):
        with pytest.raises(EngineFailed, match="not numbers"):
            await client.next_token_logprobs(BASE, [1])


async def test_so_is_one_in_a_stream(tmp_path):
    choice = {"delta": {"content": "a"}, "token_ids": [5], "logprobs": {"content": [{"token": "a", "logprob": None}]}}
    body = b"data: " + json.dumps({"model": BASE, "choices": [choice]}).encode() + b"\n\n"
    async with stub(tmp_path, body + DONE) as (client, _):
        with pytest.raises(EngineFailed, match="not numbers"):
            await read(client, sampling=Sampling(0.7, 9, logprobs=True))


@pytest.mark.parametrize(("answer", "status"), [("400 Bad Request", 422), ("500 Internal Server Error", 502)])
async def test_a_load_that_fails_is_the_versions_fault_only_where_vllm_is_well(tmp_path, answer, status):
    body = json.dumps({"error": {"message": "rank 64 is too high", "code": 500}}).encode()
    async with stub(tmp_path, body, answer, "application/json") as (client, _):  # its health check fails alike
        with pytest.raises(EngineFailed, match=r"could not be loaded: .*rank 64") as refused:
            await client.load_adapter("policy-0001-abc", tmp_path)
    assert refused.value.status == status


# --- against vLLM -----------------------------------------------------------------------------------


@pytest.fixture
async def client(tiny_engine: TinyEngine) -> AsyncIterator[EngineClient]:
    client = tiny_engine.client()
    yield client
    await client.aclose()


@pytest.fixture
async def policies(client: EngineClient, tiny_adapters: list[Path]) -> dict[str, Path | None]:
    """The base and four loaded adapters: as many as the engine has slots."""
    names = {f"policy-{n}-client": folder for n, folder in enumerate(tiny_adapters, 1)}
    for name, folder in names.items():
        await client.load_adapter(name, folder)
    return {BASE: None, **names}


class Reference:
    """transformers and peft on the same files, in float32."""

    def __init__(self, model: Path) -> None:
        from transformers import AutoTokenizer

        self.folder, self.tokenizer = model, AutoTokenizer.from_pretrained(model)
        self.loaded: dict[Path | None, torch.nn.Module] = {}

    def logprobs(self, adapter: Path | None, ids: list[int], temperature: float = 1.0) -> torch.Tensor:
        """Return log-probabilities f32[len(ids), vocabulary] of the token after each position."""
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        if adapter not in self.loaded:
            model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
            self.loaded[adapter] = (PeftModel.from_pretrained(model, adapter) if adapter else model).eval()
        with torch.no_grad():
            return (self.loaded[adapter](torch.tensor([ids])).logits[0] / temperature).log_softmax(-1)


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> Reference:
    return Reference(tiny_model)


def joined(chunks: list[Chunk]) -> tuple[str, list[int], list[float]]:
    ids = [token for chunk in chunks for token in chunk.response_ids]
    return "".join(c.text for c in chunks), ids, [p for c in chunks for p in c.logprobs or ()]


@pytest.mark.engine
async def test_streamed_text_is_the_decoded_ids_and_the_unstreamed_text(client, policies, reference, tiny_engine):
    name = "policy-1-client"
    eos, reasons = reference.tokenizer.eos_token_id, set()
    transport = httpx.AsyncHTTPTransport(uds=str(tiny_engine.uds))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as plain:
        for seed in range(12):
            chunks = await read(client, name, Sampling(1.0, 24, seed=seed))
            text, ids, _ = joined(chunks)
            reasons.add(chunks[-1].finish_reason)
            assert (ids[-1] == eos) == (chunks[-1].finish_reason == "stop")
            assert eos not in ids[:-1]
            # vLLM holds an unfinished UTF-8 sequence back; at the end it is lost, decoded it is U+FFFD.
            assert text.rstrip("�") == reference.tokenizer.decode(ids, skip_special_tokens=True).rstrip("�")
            body = {"model": name, "messages": ASK, "temperature": 1.0, "max_tokens": 24, "seed": seed}
            answer = (await plain.post("/v1/chat/completions", json=body)).json()
            assert answer["choices"][0]["message"]["content"] == text
            prompt = reference.tokenizer.apply_chat_template(ASK, add_generation_prompt=True, return_dict=False)
            assert [c.prompt_ids for c in chunks if c.prompt_ids is not None] == [tuple(prompt)]
            assert {c.model for c in chunks} == {name}
    assert reasons == {"stop", "length"}


@pytest.mark.engine
async def test_a_stop_string_ends_the_reply_before_it(client):
    samplings = [Sampling(1.0, 100, seed=seed, stop=("a", "e")) for seed in range(8)]
    replies = [await read(client, sampling=sampling) for sampling in samplings]
    assert not {"a", "e"} & set("".join(joined(chunks)[0] for chunks in replies))
    assert any(joined(chunks)[0] for chunks in replies)
    assert "stop" in {chunks[-1].finish_reason for chunks in replies}


@pytest.mark.engine
async def test_next_token_logprobs_match_transformers_for_base_and_adapters(client, policies, reference):
    ids = [1, 384, 201, 42, 313, 81, 264, 273, 2, 201, 1]
    for name, adapter in policies.items():
        wanted = reference.logprobs(adapter, ids)[-1]
        found = await client.next_token_logprobs(name, ids, top=20)
        assert list(found) == wanted.topk(20).indices.tolist()
        for token, value in found.items():
            assert value == pytest.approx(wanted[token].item(), abs=1e-3)  # float32, other order of sums


@pytest.mark.engine
async def test_in_a_batch_of_base_and_all_slots_every_reply_keeps_to_its_own_policy(client, policies, reference):
    """Without thumbwise.cpu_adapters the base gets the last slot's adapter: other tokens altogether."""
    order: list[str] = []
    replies: list[tuple[str, list[Chunk]]] = []
    begun, over = {name: asyncio.Event() for name in policies}, asyncio.Event()

    async def reply(name: str, seed: int) -> None:
        replies.append((name, []))
        mine = replies[-1][1]
        async for chunk in client.chat(name, ASK, Sampling(0.7, 40, seed=seed, logprobs=True)):
            mine.append(chunk)
            order.append(name)
            begun[name].set()

    async def keep_busy(name: str) -> None:
        seeds = itertools.count()
        while not over.is_set():
            await reply(name, next(seeds))

    others = [asyncio.create_task(keep_busy(name)) for name in policies if name != BASE]
    for name in policies:
        if name != BASE:
            await begun[name].wait()
    for seed in range(6):
        await reply(BASE, seed)
    over.set()
    await asyncio.gather(*others)
    first, last = order.index(BASE), len(order) - order[::-1].index(BASE)
    assert set(order[first:last]) == set(policies), "the replies did not run side by side"
    for name, chunks in replies:
        _, ids, found = joined(chunks)
        prompt = list(next(c.prompt_ids for c in chunks if c.prompt_ids))
        rows = reference.logprobs(policies[name], prompt + ids, temperature=0.7)[len(prompt) - 1 : -1]
        wanted = rows[torch.arange(len(ids)), torch.tensor(ids)]
        torch.testing.assert_close(torch.tensor(found), wanted, rtol=0, atol=2e-3)


@pytest.mark.engine
async def test_probes_in_one_prefill_batch_answer_as_they_do_alone(client, policies):
    contexts = [[1, 384, 201, 42 + n, 313] for n in range(5)]
    asked = [(name, context) for context in contexts for name in policies]
    alone = [await client.next_token_logprobs(name, context) for name, context in asked]
    together = await asyncio.gather(*(client.next_token_logprobs(name, context) for name, context in asked))
    for one, other in zip(alone, together, strict=True):
        assert one == pytest.approx(other, abs=1e-3)


@pytest.mark.engine
@pytest.mark.parametrize("how", ["leave the loop", "cancel the task"])
async def test_leaving_a_stream_makes_vllm_drop_the_request(client, tiny_engine, tiny_model, tmp_path, how):
    async def metric(name: str) -> float:
        transport = httpx.AsyncHTTPTransport(uds=str(tiny_engine.uds))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as plain:
            lines = (await plain.get("/metrics")).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"vllm:{name}{{"))

    most, endless = 4000, f"policy-8-{how.replace(' ', '-')}"  # endless: its replies take all they may
    await client.load_adapter(endless, make_token_adapter(tiny_model, tmp_path / "endless", token=300))

    async def reply(begun: asyncio.Event) -> None:
        ask = [{"role": "user", "content": "27"}]
        async with contextlib.aclosing(client.chat(endless, ask, Sampling(0.0, most))) as chunks:
            async for chunk in chunks:
                if chunk.response_ids:
                    begun.set()
                    if how == "leave the loop":
                        break

    async def generated() -> float:
        """Return how many tokens a reply took that was left at its first."""
        before, begun = await metric("generation_tokens_total"), asyncio.Event()
        task = asyncio.create_task(reply(begun))
        await begun.wait()
        if how == "cancel the task":
            task.cancel()
        await asyncio.wait([task])
        while await metric("num_requests_running"):
            await asyncio.sleep(0.1)
        return await metric("generation_tokens_total") - before

    # With such a small model on a busy machine, vLLM's core may be at the end before its front end has sent
    # a token: then nothing is left to drop, and another reply is tried.
    taken = [await generated()]
    while taken[-1] > most / 2 and len(taken) < 5:
        taken.append(await generated())
    await client.unload_adapter(endless)
    assert 0 < taken[-1] < most / 2, taken


@pytest.mark.engine
async def test_unknown_policies_and_long_prompts_are_refused_in_a_sentence(client):
    with pytest.raises(EngineFailed, match="`policy-9` does not exist"):
        await read(client, "policy-9")
    with pytest.raises(ThumbwiseError, match=r"longer than the model can read \(4096 tokens\)") as caught:
        await anext(client.chat(BASE, [{"role": "user", "content": "so " * 9000}], SAMPLING))
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")


@pytest.mark.engine
async def test_adapters_are_listed_with_their_folders_loaded_twice_and_unloaded(client, tiny_adapters, tmp_path):
    name = "policy-7-listed"
    for _ in range(2):
        await client.load_adapter(name, tiny_adapters[0])
    assert (await client.adapters())[name] == str(tiny_adapters[0])
    await client.unload_adapter(name)
    assert name not in await client.adapters()
    with pytest.raises(EngineFailed, match="could not be loaded") as refused:
        await client.load_adapter("policy-8-missing", tmp_path / "missing")
    assert refused.value.status == 422  # vLLM is well
    with pytest.raises(EngineFailed, match="could not be unloaded"):
        await client.unload_adapter("policy-8-missing")
    assert await client.next_token_logprobs(BASE, [1], top=3)
