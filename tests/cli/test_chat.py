"""Conversations: the same answers whether the cache is kept or not, and a terminal that behaves as people expect."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pexpect
import pytest

from anyformer import generation
from anyformer.cli.chat import HELP, Conversation
from anyformer.errors import TextError
from anyformer.model import Transformer, load
from anyformer.text import Tokenizer

LENGTH = 12


@pytest.fixture
def model(talker: Path) -> Transformer:
    return load(talker)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each turn gave the model to read."""
    lengths: list[int] = []
    decode = generation.decode

    def counting(model, prompts, *arguments, **more):
        lengths.append(prompts.ids.shape[1])
        return decode(model, prompts, *arguments, **more)

    monkeypatch.setattr(generation, "decode", counting)
    return lengths


def answer(conversation: Conversation, text: str) -> str:
    return "".join(conversation.say(text))


def without_cache(model: Transformer, earlier: Conversation, text: str) -> str:
    """What a conversation that has only the messages of an earlier one answers."""
    return answer_to(model, earlier.messages, text)


def answer_to(model: Transformer, messages: list[dict[str, str]], text: str, **settings: Any) -> str:
    """What a new conversation with these messages answers."""
    fresh = Conversation(model, max_new_tokens=LENGTH, **settings)
    fresh.messages = list(messages)
    return answer(fresh, text)


def test_turns_read_only_what_is_new(model: Transformer, read: list[int]) -> None:
    """Each turn reads what the last answer left unread and the new message; the answer is that of a conversation read
    from its beginning."""
    conversation = Conversation(model, max_new_tokens=LENGTH)
    first = answer(conversation, "hello")
    wanted = without_cache(model, conversation, "and now?")
    read.clear()
    second = answer(conversation, "and now?")
    assert len(first) == len(second) == LENGTH and second == wanted
    # The last letter of the answer was written and not yet read.
    assert read == [len(first[-1:] + "\n[user]and now?\n[assistant]")]
    assert [message["content"] for message in conversation.messages] == ["hello", first, "and now?", second]


@pytest.mark.parametrize("lookup", [0, 4])
def test_what_was_said_in_earlier_turns_is_penalised(model: Transformer, read: list[int], lookup: int) -> None:
    """Whether the cache holds it already or it is read anew."""
    settings = {"repetition_penalty": 1.3, "no_repeat_ngram": 4, "frequency_penalty": 0.3, "prompt_lookup": lookup}
    conversation = Conversation(model, max_new_tokens=LENGTH, **settings)
    for text in ("hello", "hello, hello", "hello"):
        before = list(conversation.messages)
        assert answer(conversation, text) == answer_to(model, before, text, **settings)
    assert read[2] < read[3], "of the second turn, what is new is read alone"


def test_an_answer_ends_at_a_stop_string_and_the_next_one_goes_on(model: Transformer) -> None:
    """What is kept of it is what was seen, and the next answer is that of a conversation read from its beginning."""
    whole = answer(Conversation(model, max_new_tokens=LENGTH), "hello")
    conversation = Conversation(model, max_new_tokens=LENGTH, stop=whole[3:5])
    assert answer(conversation, "hello") == whole[: whole.find(whole[3:5])]
    assert answer(conversation, "more") == answer_to(model, conversation.messages[:2], "more", stop=whole[3:5])


def test_a_conversation_may_be_guessed_ahead(model: Transformer, read: list[int]) -> None:
    """With prompt lookup, which looks into all of the conversation, answers are the same and turns read only what is
    new, also after a stop string that was guessed beyond."""
    plain, guessed = (Conversation(model, max_new_tokens=LENGTH, prompt_lookup=many) for many in (0, 4))
    for message in ("hello hello hello", "and hello"):
        assert answer(guessed, message) == answer(plain, message)
    stop = answer(plain, "more")[1:3] or "no such text"
    guessed = Conversation(model, max_new_tokens=LENGTH, prompt_lookup=4, stop=stop)
    plain = Conversation(model, max_new_tokens=LENGTH, stop=stop)
    for message in ("hello", "more", "more"):
        assert answer(guessed, message) == answer(plain, message)


def test_a_template_that_rewrites_the_past_is_read_anew(model: Transformer, read: list[int]) -> None:
    """Where the rendered conversation does not go on from what the cache holds, all of it is read, and the answer is
    right."""
    assert model.tokenizer is not None
    rewriting = "{{ messages | length }}{% for message in messages %}[{{ message.content }}]{% endfor %}"
    config = {**model.tokenizer._config, "chat_template": rewriting}
    model.tokenizer = Tokenizer(model.tokenizer._backend, config)
    conversation = Conversation(model, max_new_tokens=LENGTH)
    first = answer(conversation, "hello")
    wanted = without_cache(model, conversation, "more")
    read.clear()
    assert answer(conversation, "more") == wanted
    assert read == [len(f"3[hello][{first}][more]")]


def test_an_answer_that_was_stopped_stays(model: Transformer) -> None:
    """What was said before the stop is part of the conversation, and the next answer takes it into account."""
    conversation = Conversation(model, max_new_tokens=LENGTH)
    whole = answer(Conversation(model, max_new_tokens=LENGTH), "hello")
    pieces = conversation.say("hello")
    said = "".join(next(pieces) for _ in range(4))
    pieces.close()
    assert whole.startswith(said)
    assert conversation.messages[-1] == {"role": "assistant", "content": said}
    wanted = without_cache(model, conversation, "go on")
    assert answer(conversation, "go on") == wanted


def test_reset_forgets_all_but_the_system_message(model: Transformer) -> None:
    """After a reset the same question gets the same answer as at first; the system message stands."""
    conversation = Conversation(model, "be brief", max_new_tokens=LENGTH)
    first = answer(conversation, "hello")
    answer(conversation, "more")
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "be brief"}]
    assert answer(conversation, "hello") == first != answer(Conversation(model, max_new_tokens=LENGTH), "hello")


def test_a_pipe_gets_answers_and_nothing_else(command: list[str], talker: Path, model: Transformer) -> None:
    """Without a terminal each line is a message, each answer a line; commands work, and the end of input ends it."""
    conversation = Conversation(model, max_new_tokens=LENGTH)
    wanted = [answer(conversation, "one"), answer(conversation, "two")]
    arguments = [*command, "chat", str(talker), "-n", str(LENGTH)]
    said = "one\ntwo\n\n/reset\none\n/exit\nnever"
    ran = subprocess.run(arguments, input=said, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == [*wanted, wanted[0]] and ran.stderr == ""


def test_several_lines_make_one_message(
    anyformer: Callable, talker: Path, model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between triple quotes, on lines of their own or not, to the end of input where none close; with whatever else
    stands there, commands too."""
    conversation = Conversation(model, max_new_tokens=LENGTH)
    wanted = [answer(conversation, said) for said in ("one\n/reset\n\n  two", "three", "four\nfive")]
    said = '"""\none\n/reset\n\n  two  \n"""\n """three"""\n\n""" four\nfive\n'
    monkeypatch.setattr("sys.stdin", StringIO(said))
    assert anyformer("chat", talker, "-n", LENGTH).out.splitlines() == wanted


def test_settings_are_those_of_generate(
    anyformer: Callable, talker: Path, model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options that other verbs have reach the answers of a conversation; a search that the model's file asks for is
    passed over."""
    settings = {"no_repeat_ngram": 1, "min_new_tokens": 3, "encoder_no_repeat_ngram": 2, "exponential_decay": (1, 1.5)}
    wanted = answer(Conversation(model, max_new_tokens=LENGTH, **settings), "one")
    assert wanted != answer(Conversation(model, max_new_tokens=LENGTH), "one")
    monkeypatch.setattr("sys.stdin", StringIO("one\n"))
    asked = ("--no-repeat-ngram", 1, "--min-new-tokens", 3, "--encoder-no-repeat-ngram", 2)
    assert anyformer("chat", talker, "-n", LENGTH, *asked, "--exponential-decay", 1, 1.5).out == f"{wanted}\n"
    model.generation |= {"penalty_alpha": 0.6, "top_k": 4, "no_repeat_ngram_size": 1}
    searched = Conversation(model, max_new_tokens=LENGTH)
    model.generation = {"no_repeat_ngram_size": 1}
    assert answer(searched, "one") == answer(Conversation(model, max_new_tokens=LENGTH), "one")


def test_what_is_wrong_from_the_start_is_said_at_the_start(
    anyformer: Callable, talker: Path, model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings, and a template that refuses the system message, before anything is asked; and a mistyped command is
    not meant for the model."""
    for arguments, sentence in [
        (("--stop", ""), "'stop.0' cannot be used"),
        ((), "there is no command /rest; /reset begins anew"),
    ]:
        monkeypatch.setattr("sys.stdin", StringIO("/rest\n"))
        ran = anyformer("chat", talker, *arguments)
        assert ran.code == 2 and sentence in ran.err and not ran.out
    tokenizer = model.tokenizer
    assert tokenizer is not None
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    model.tokenizer = Tokenizer(tokenizer._backend, {**tokenizer._config, "chat_template": refusing})
    Conversation(model)
    with pytest.raises(TextError, match="the chat template refuses these messages: no system here"):
        Conversation(model, "be brief")


def in_terminal(arguments: list[str]) -> pexpect.spawn:
    """A program in a terminal so wide that nothing wraps, which heeds Ctrl-C even where these tests run in the
    background and do not."""
    program, *rest = arguments
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return pexpect.spawn(
        program, rest, encoding="utf-8", timeout=200, dimensions=(40, 4000), echo=False, preexec_fn=heeding
    )


def test_a_conversation_in_a_terminal(command: list[str], talker: Path, model: Transformer) -> None:
    """In a real terminal: a greeting, a prompt, answers as they come over two turns; Ctrl-C at the prompt only helps;
    /reset forgets; Ctrl-D leaves with code 0."""
    conversation = Conversation(model, max_new_tokens=400)
    wanted = [answer(conversation, "one"), answer(conversation, "two")]
    terminal = in_terminal([*command, "chat", str(talker), "-n", "400"])
    terminal.expect_exact(HELP)
    for message, reply in zip(("one", "two"), wanted):
        terminal.expect_exact("> ")
        terminal.sendline(message)
        terminal.expect_exact(reply)
    terminal.expect_exact("> ")
    terminal.sendintr()
    terminal.expect_exact(HELP)
    terminal.expect_exact("> ")
    terminal.sendline("/rest")
    terminal.expect_exact("(there is no command /rest; ")
    terminal.expect_exact("> ")
    terminal.sendline("/reset")
    terminal.expect_exact("> ")
    terminal.sendline("one")
    terminal.expect_exact(wanted[0])
    terminal.expect_exact("> ")
    terminal.sendeof()
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0


def test_an_answer_is_stopped(command: list[str], talker: Path) -> None:
    """Ctrl-C stops an answer that would go on for hours, says so, and the conversation goes on."""
    terminal = in_terminal([*command, "chat", str(talker), "-n", "1000000"])
    for message in ("one", "two"):
        terminal.expect_exact("> ")
        terminal.sendline(message)
        terminal.expect("[!-~]{5}")
        terminal.sendintr()
        terminal.expect_exact("…")
    terminal.expect_exact("> ")
    terminal.sendeof()
    terminal.expect(pexpect.EOF)
    terminal.wait()
    assert terminal.exitstatus == 0


def test_a_real_model_remembers_what_it_was_told(command: list[str], smollm2: Path) -> None:
    """SmolLM2, out of its GGUF file and with its own template, in a terminal: in the second turn it knows the word that
    it was told in the first."""
    terminal = in_terminal([*command, "chat", str(smollm2), "-n", "24", "--threads", "1"])
    terminal.expect_exact("\n> ")
    terminal.sendline("The secret word is banana. Repeat it.")
    terminal.expect_exact("\n> ")
    terminal.sendline("What is the secret word?")
    terminal.expect_exact("\n> ")
    assert "banana" in terminal.before
    terminal.sendline("/exit")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [("bert:tiny", "no decoder with a language-model head"), ("llama:tiny", "no chat template")],
)
def test_models_that_cannot_talk_say_so(reference: str, sentence: str, anyformer: Callable) -> None:
    """An encoder, and a model without a template, are refused in a sentence."""
    ran = anyformer("chat", reference)
    assert ran.code == 2 and sentence in ran.err
