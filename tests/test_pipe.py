"""Programs over a pipe: one in C and one for Node conform, and what goes wrong gets a sentence."""

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_command_line import cli
from test_misbehaving import report_of

from conformance import subjects
from conformance.cases.attention import PLAIN
from conformance.conftest import select
from conformance.mask_spec import causal
from conformance.oracle.tolerance import Differs, dtype
from conformance.subjects import pipe, program
from conformance.subjects.adapter import Plugged
from conformance.subjects.protocol import CAPABILITIES, NotOffered
from conformance.vectors.check_subject import check, checks

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/pipe.md").read_text("utf-8")
PROGRAMS = {"c": ROOT / "examples/pipe/attention.c", "node": ROOT / "examples/pipe/attention.mjs"}
COMPILER, NODE = shutil.which("cc") or shutil.which("gcc"), shutil.which("node")


def compiled(source: Path, program: Path) -> Path:
    if not COMPILER:
        pytest.skip("neither cc nor gcc is on the PATH to compile the program in C")
    strict = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-O2"]
    subprocess.run([COMPILER, *strict, "-o", program, source, "-lm"], check=True)
    return program


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder as a reader of the page has it."""
    folder = tmp_path_factory.mktemp("pipe")
    for source in PROGRAMS.values():
        shutil.copy(source, folder)
    return folder


@pytest.fixture(scope="module")
def commands(folder) -> dict[str, str]:
    """What stands after `pipe:` for each program that can be had here."""
    found = {"node": f"node {folder}/attention.mjs"} if NODE else {}
    if COMPILER:
        found["c"] = str(compiled(folder / "attention.c", folder / "attention"))
    return found


def named(commands, name: str) -> str:
    if name not in commands:
        pytest.skip(f"{'node' if name == 'node' else 'cc or gcc'} is not on the PATH")
    return commands[name]


def plugged(command: str) -> Plugged:
    (subject,) = subjects.plug(f"pipe:{command}")
    return subject


# Programs that conform


@pytest.mark.parametrize(("name", "least"), [("c", 50), ("node", 60)])
def test_frozen_vectors_are_put_to_a_program(commands, name, least):
    subject, judged = plugged(named(commands, name)), 0
    for entry, kind in checks():
        if kind in subject.dtypes:
            try:
                check(subject, entry["id"], kind)
                judged += 1
            except NotOffered:
                continue
    assert judged >= least


@pytest.mark.parametrize("name", ["c", "node"])
def test_command_of_the_page_ends_in_a_pass(commands, folder, name):
    named(commands, name)
    (text,) = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (shown,) = re.findall(r"^```text\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    compiling, *lines = text.splitlines()
    assert compiling == "cc -O2 -o attention attention.c -lm" and len(lines) == 2
    done = cli(*shlex.split(lines[name == "node"])[3:], cwd=folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    pattern = ".*".join(map(re.escape, shown.strip().split("...")))
    assert re.fullmatch(pattern, done.stdout.splitlines()[-1])


MISTAKES = {
    "inverted": ("mask.data && !((char", "mask.data && ((char"),
    "tiled": ("h / (H / k.shape[1])", "h % k.shape[1]"),
    "unscaled": ("1 / sqrt((double)q.shape[3])", "1.0"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_program_with_a_mistake_is_caught(tmp_path, name):
    right, wrong = MISTAKES[name]
    source, text = tmp_path / "wrong.c", PROGRAMS["c"].read_text("utf-8")
    assert text.count(right) == 1
    source.write_text(text.replace(right, wrong), "utf-8")
    subject = plugged(str(compiled(source, tmp_path / "wrong")))
    vector = {"inverted": "ATT-1.causal", "tiled": "ATT-5.grouped", "unscaled": "ATT-1.causal"}[
        name
    ]
    with pytest.raises(Differs, match=rf"^vector {vector}: output at \(.*\): expected .*, got"):
        check(subject, vector, "float32")


def test_environment_names_a_program_with_its_arguments(tmp_path, monkeypatch):
    monkeypatch.setenv(subjects.ENVIRONMENT, f"pipe:{script(tmp_path, 'pass')}")
    (subject,) = select(None, "auto")
    assert subject.adapter.words[1:3] == ["-I", "-S"]


def test_program_that_adds_the_mask_is_given_floats(tmp_path):
    command = script(tmp_path, ECHO, HELLO.replace('"attend"', '"add"'))
    subject = plugged(command)
    assert shlex.split(subject.asked_as) == ["--subject", f"pipe:{command}"]
    with pytest.raises(RuntimeError, match=r"mask: float32 \[3, 2, 5, 7\]"):
        subject.attention(*PLAIN.inputs("float32"), mask=causal(), query_offset=2)


# The page


def test_conversation_of_the_page_is_what_the_program_in_c_says(commands):
    (text,) = re.findall(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    question, answer = text.splitlines()
    program = named(commands, "c")
    done = subprocess.run(
        [program], input=f"{question}\n".encode(), capture_output=True, check=True
    )
    assert done.stdout.decode().splitlines()[1:] == [answer]


def first_column(heading: str) -> list[str]:
    (table,) = re.findall(rf"^\| {heading} \|.*?(?=\n\n)", PAGE, re.MULTILINE | re.DOTALL)
    return re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


def test_page_names_every_call_and_every_field():
    methods = [name for name in vars(pipe.Pipe) if name[0] != "_"]
    assert first_column("name") == ["pipe", *pipe.SAID]
    assert set(first_column("call")) == set(methods) - {"start", "ask", "versions"}
    assert set(CAPABILITIES) >= pipe.LASTING


@pytest.mark.parametrize("kind", pipe.DTYPES)
@pytest.mark.parametrize("shape", [(), (3, 5), (2, 0, 7)])
def test_array_that_is_sent_and_returned_is_the_same_to_the_bit(kind, shape):
    array = np.random.default_rng(0).normal(size=shape).astype(dtype(kind))
    if kind.endswith(("16", "32", "64")) and array.size and "float" in kind:
        array.flat[0] = np.nan
    back = pipe.decoded(json.loads(json.dumps(pipe.encoded(array))), "x")
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, shape, array.tobytes())


def test_number_that_json_lacks_is_not_offered():
    with pytest.raises(NotOffered, match=r"^a number of JSON is finite: got inf$"):
        pipe.encoded({"softcap": float("inf")})


# Programs that misbehave

HELLO = '{"pipe": 1, "mask_polarity": "attend", "capabilities": ["attention", "weights"]}'
SCRIPT = """
import json, os, sys, time
print({hello!r}, flush=True)
for line in sys.stdin:
    question = json.loads(line)
    id = question["id"]
    output = dict(dtype="float32", shape=[3, 2, 5, 13], data="AAAA" * 520)
    {body}
    print(json.dumps(dict(id=id, output=output)), flush=True)
"""
ECHO = """told = {n: f"{x['dtype']} {x['shape']}" for n, x in question.items() if hasattr(x, "get")}
    print(json.dumps(dict(id=id, error=f"mask: {told.get('mask')}")), flush=True); continue"""


def script(folder: Path, body: str, hello: str = HELLO) -> str:
    """Return the command of a program that answers with zeros unless its body does something."""
    path = folder / "program.py"
    path.write_text(SCRIPT.format(hello=hello, body=body), "utf-8")
    return f"{shlex.quote(sys.executable)} -I -S {shlex.quote(str(path))}"


RULE = "the program must print one JSON object a line, and all else to stderr: got "
WRONG = {
    "dies": (
        "print('no memory', file=sys.stderr); sys.exit(3)",
        "the program must answer: got its end with status 3; its last words: 'no memory'",
    ),
    "killed": ("os.kill(os.getpid(), 9)", "the program must answer: got its end by SIGKILL"),
    "closes": (
        "os.close(1); time.sleep(600)",
        "the program must answer: got the end of its output",
    ),
    "half_a_line": (
        "sys.stdout.write('{'); sys.stdout.flush(); os._exit(0)",
        "the program must answer: got its end with status 0",
    ),
    "rubbish": ("print('computing')", f"{RULE}'computing'"),
    "no_text": (
        r"sys.stdout.buffer.write(b'\xff\x00\n'); sys.stdout.flush()",
        rf"{RULE}'\\xff\x00'",
    ),
    "deep": ("print('[' * 100_000)", f"{RULE}'[[[["),
    "no_object": ("print('[1]')", f"{RULE}'[1]'"),
    "other_id": ("id -= 1", "an answer must have the id 1: got 0"),
    "no_output": ("output = None", "an answer must be an array: got NoneType"),
    "list": ("output = [0.0]", "output must be an object with dtype, shape and data: got [0.0]"),
    "dtype": (
        "output['dtype'] = 'float8'",
        "the dtype of output must be one of float64, float32, float16, bfloat16, int64, int32, "
        "bool: got 'float8'",
    ),
    "shape": (
        "output['shape'] = [-1, 3]",
        "the shape of output must be a list of sizes: got [-1, 3]",
    ),
    "short": (
        "output['data'] = 'AAAA'",
        "output of shape (3, 2, 5, 13) in float32 has 1560 bytes: got 3",
    ),
    "base64": ("output['data'] = '!'", "the data of output must be base64: got "),
}  # fmt: skip


@pytest.mark.parametrize("how", WRONG)
def test_answer_that_breaks_the_protocol_differs_in_words(tmp_path, how):
    body, words = WRONG[how]
    with pytest.raises(Differs) as raised:
        plugged(script(tmp_path, body)).attention(*PLAIN.inputs("float32"))
    assert str(raised.value).startswith(words)


def test_answer_without_weights_says_so(tmp_path):
    subject = plugged(script(tmp_path, "pass"))
    words = "^an answer to `weights` must hold output, weights: got no weights$"
    with pytest.raises(Differs, match=words):
        subject.steps(*PLAIN.inputs("float32"))


def test_program_that_died_is_started_again_and_a_refusal_leaves_it(tmp_path):
    once = f"""first = not os.path.exists({str(tmp_path / "once")!r}) and id == 2
    if first: open({str(tmp_path / "once")!r}, "w"); sys.exit(0)
    if id == 4: print(json.dumps(dict(id=id, error="too large")), flush=True); continue"""
    subject = plugged(script(tmp_path, once))
    started, outcomes = [], []
    for _ in range(5):
        try:
            outcomes.append(subject.attention(*PLAIN.inputs("float32")).shape)
        except (Differs, RuntimeError) as error:
            outcomes.append(str(error))
        started.append(subject.adapter.program.process.pid)
    right, died = (3, 2, 5, 13), "the program must answer: got its end with status 0"
    assert outcomes == [right, died, right, "the program says: too large", right]
    assert started[0] == started[1] != started[2] == started[3] == started[4]


def test_program_that_dies_has_refused_nothing(tmp_path):
    subject = plugged(script(tmp_path, "sys.exit(1)", HELLO.replace('"weights"', '"grouped"')))
    with pytest.raises(Differs, match="must answer: got its end with status 1"):
        check(subject, "ATT-5.not_divisible", "float32")


FIRST = {
    "silent": ("", "the program must answer: got the end of its output|its end"),
    "rubbish": ("hello", f"{RULE}'hello'"),
    "no_version": ("{}", 'first line must be an object with "pipe": 1: got "pipe": None'),
    "newer": ('{"pipe": 2, "name": "x"}', 'with "pipe": 1: got "pipe": 2'),
    "unknown": ('{"pipe": 1, "masks": "hide"}', "holds name, mask_polarity, .*: got masks"),
    "no_polarity": ('{"pipe": 1}', "`mask_polarity` must say what True means.*: got None"),
    "lasting": (
        HELLO.replace("weights", "cache"),
        "may offer what one question and its answer hold: got cache",
    ),
    "capability": (HELLO.replace("weights", "speed"), "must be among attention, .*: got speed"),
}


@pytest.mark.parametrize("how", FIRST)
def test_first_line_that_says_too_little_is_refused(tmp_path, how):
    hello, words = FIRST[how]
    text = script(tmp_path, "pass", hello)
    if how == "silent":
        (tmp_path / "program.py").write_text("", "utf-8")
    with pytest.raises(ValueError, match=words):
        plugged(text)


@pytest.mark.parametrize(
    ("command", "words"),
    [("", "after `pipe:` stand a program and its arguments: got nothing"),
     ("./nobody", r"the program must start: got \[Errno 2\] .*'./nobody'")],
)  # fmt: skip
def test_program_that_is_not_there_is_refused(command, words):
    with pytest.raises(ValueError, match=words):
        plugged(command)


CASE = ["--case", "test_zero_gives_exact_zeros[EMPTY-1-float32]"]


@pytest.fixture
def line():
    """A line to the program under test: it breaks when that has ended."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        yield server


def calling(line: socket.socket, body: str) -> str:
    """Return what a program does that calls before it does something."""
    address = line.getsockname()
    return f"import socket; call = socket.create_connection({address!r}); {body}"


def has_ended(line: socket.socket) -> bool:
    call, _ = line.accept()
    with call:
        call.settimeout(60)
        return call.recv(1) == b""


def test_program_that_hangs_is_ended_with_its_case(tmp_path, line):
    command = script(tmp_path, calling(line, "time.sleep(600)"))
    done = cli("run", "--subject", f"pipe:{command}", *CASE, "--timeout", "1.5", cwd=tmp_path)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    ((outcome, message),) = report_of(tmp_path).values()
    assert outcome == "error"
    rule = "no answer within 1.5 s (--timeout) from the program"
    assert message == f"{rule}; does it flush its output after every line?"
    assert f"{CASE[1]}: {message}\nrun just this: python -m conformance run " in done.stderr
    assert has_ended(line)


def test_program_that_keeps_its_output_is_soon_told_to_flush(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "START", 2)
    command = script(tmp_path, "")
    text = SCRIPT.format(hello=HELLO, body="").replace("flush=True", "flush=False")
    (tmp_path / "program.py").write_text(text, "utf-8")
    words = "the program must print its first line in 2 s: got nothing; does it flush its output"
    with pytest.raises(ValueError, match=re.escape(words)):
        plugged(command)


def test_program_may_think_after_its_first_line(tmp_path, monkeypatch):
    subject = plugged(script(tmp_path, "time.sleep(1)"))
    monkeypatch.setattr(program, "START", 0.1)
    subject.attention(*PLAIN.inputs("float32"))


def test_program_that_ignores_the_end_of_its_input_is_ended(tmp_path, line):
    subject = plugged(script(tmp_path, calling(line, "time.sleep(600)")))
    subject.adapter.program.send({"id": 1})
    call, _ = line.accept()
    with call:
        del subject
        call.settimeout(60)
        assert call.recv(1) == b""
