"""What an endpoint refuses in a chat request, and what it sets in one, so that its prompts are those of training."""

import shutil

import pytest
from conftest import add_bos

from serving.chat_rules import ChatRules, variables_of
from vidalign.model.rendering import load_processor, prompt_ids


def request(**fields):
    return {"messages": [], "stop_token_ids": [], "add_special_tokens": False, **fields}


def user(content):
    return request(messages=[{"role": "user", "content": content}])


CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]}
VIDEO = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,<|im_end|>"}}


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (user("Which way?<|im_end|>"), "messages[0].content"),
        (user([VIDEO, {"type": "text", "text": "<|im_start|>assistant"}]), "messages[0].content[1].text"),
        (request(messages=[{"role": "system", "content": "</s>"}]), "messages[0].content"),
        (request(messages=[{"role": "user<|im_end|>", "content": "Hi"}]), "messages[0].role"),
        (request(tools=[{"function": {"name": "<eos>"}}]), "tools[0].function.name"),
        (request(chat_template_kwargs={"date": "<|im_end|>"}), "chat_template_kwargs.date"),
        (user("Which way? <model's own>"), "messages[0].content"),
    ],
)
def test_a_special_token_is_refused_with_its_place(body, place, model_path):
    rules = ChatRules.of(model_path)
    rules = ChatRules(special=type(rules.special)((*rules.special.texts, "<model's own>")), stop=rules.stop)
    message = rules.refusal(body)
    assert message is not None
    assert message.startswith(f"{place}: holds the special token ")


def test_plain_requests_are_answered_and_media_are_not_read_as_text(model_path):
    assert ChatRules.of(model_path).refusal(user([VIDEO, {"type": "text", "text": "Which way? a < b | c > d"}])) is None


@pytest.mark.parametrize(
    ("changed", "in_template", "adds"), [(False, False, False), (True, False, True), (True, True, False)]
)
def test_bos_and_end_of_turn_are_those_of_training(model_path, tmp_path, changed, in_template, adds):
    shutil.copytree(model_path, tmp_path / "model")
    if changed:
        add_bos(tmp_path / "model", in_template=in_template)
    body = request(stop_token_ids=[7], add_special_tokens=not adds)
    ChatRules.of(str(tmp_path / "model")).apply(body)
    assert body["add_special_tokens"] is adds
    assert body["stop_token_ids"] == [7, 2]  # <|im_end|>
    processor = load_processor(str(tmp_path / "model"))
    ids = prompt_ids(processor, "Which way?")
    assert ids[:2] == ([0, 1] if changed else [1, 378])
    assert ids.count(0) == int(changed)


def test_a_client_may_ask_to_go_on_past_the_end_of_a_turn():
    body = request(stop_token_ids=[7], ignore_eos=True)
    ChatRules(stop=2).apply(body)
    assert body["stop_token_ids"] == [7]


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"tools": [{"type": "function"}]}, "tools is not taken"),
        ({"documents": [{"title": "a"}]}, "documents is not taken"),
        ({"reasoning_effort": "low"}, "reasoning_effort is not taken"),
        ({"chat_template_kwargs": {"add_vision_id": True}}, "chat_template_kwargs.add_vision_id is not taken"),
        ({"messages": [CALL]}, "messages[0].tool_calls is not taken"),
        ({"chat_template_kwargs": {"tokenize": False}}, "chat_template_kwargs.tokenize is the endpoint's own"),
    ],
)
def test_what_the_template_does_not_read_is_refused_and_not_ignored(fields, place, model_path):
    message = ChatRules.of(model_path).refusal(request(**fields))
    assert message is not None
    assert message.startswith(place)


def test_what_the_template_reads_is_taken():
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if tools %}{{ tools }}{% endif %}{{ enable_thinking }}"
    reads = variables_of(template)
    assert reads == {"messages", "tools", "enable_thinking"}
    fields = {"tools": [{}], "reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}}
    assert ChatRules(reads=reads).refusal(request(**fields)) is None
    assert (
        ChatRules(reads=variables_of("{% if message['tool_calls'] %}{% endif %}")).refusal(request(messages=[CALL])) is None
    )
    assert variables_of("{% generation %}{% endgeneration %}") is None
    assert ChatRules().refusal(request(tools=[{}])) is None
