"""grpcio through balancer.

grpc_client.py calls TARGET [CA]     all kinds of calls
grpc_client.py names TARGET NUMBER   asks so often on one connection, prints `NAME TIMES` of each server that answered
grpc_client.py down TARGET           there must be no server
grpc_client.py health TARGET up|down tells a server what it says of itself
"""
import collections
import hashlib
import queue
import sys

import grpc

COMMAND, TARGET, *MORE = sys.argv[1:]
LIMIT = 30


def channel(ca=None):
    options = (("grpc.enable_http_proxy", 0),)
    if ca is None:
        return grpc.insecure_channel(TARGET, options)
    with open(ca, "rb") as file:
        return grpc.secure_channel(TARGET, grpc.ssl_channel_credentials(file.read()), options)


def error_of(call):
    try:
        found = call()
    except grpc.RpcError as error:
        return error
    raise AssertionError(f"no error: {found}")


def unary(channel):
    echo = channel.unary_unary("/interop.Calls/Echo")
    for message in (b"", b"hello", bytes(3 << 20)):
        answer, call = echo.with_call(
            message, timeout=LIMIT, metadata=(("x-ask", "a, b"), ("x-ask-bin", b"\x00\x80\xff")))
        assert answer == message, len(answer)
        first, last = dict(call.initial_metadata()), dict(call.trailing_metadata())
        assert (first["x-answer"], first["x-answer-bin"]) == ("a, b", b"\x00\x80\xff"), first
        assert (last["x-last"], last["x-last-bin"]) == ("word", b"\x00\xfe\xff"), last
        assert "x-last" not in first and 0 < float(first["x-left"]) < LIMIT + 1, first
        assert call.code() == grpc.StatusCode.OK
    packed, call = echo.with_call(b"a" * 100_000, timeout=LIMIT, compression=grpc.Compression.Gzip)
    assert packed == b"a" * 100_000
    # All at once on the one connection.
    calls = [echo.future(str(number).encode(), timeout=LIMIT) for number in range(50)]
    assert [call.result() for call in calls] == [str(number).encode() for number in range(50)]


def streams(channel):
    counted = channel.unary_stream("/interop.Calls/Count")(b"1000", timeout=LIMIT)
    assert list(counted) == [str(number).encode() * 100 for number in range(1000)]
    assert list(channel.unary_stream("/interop.Calls/Count")(b"0", timeout=LIMIT)) == []
    blocks = [bytes([number]) * 100_000 for number in range(40)]
    digest = channel.stream_unary("/interop.Calls/Digest")(iter(blocks), timeout=LIMIT)
    assert digest.decode() == hashlib.sha256(b"".join(blocks)).hexdigest()
    assert channel.stream_unary("/interop.Calls/Digest")(iter(()), timeout=LIMIT).decode() == hashlib.sha256().hexdigest()


def interleaved(channel):
    """The next message is not written before the answer to the one before is here."""
    messages = queue.Queue()
    answers = channel.stream_stream("/interop.Calls/Talk")(iter(messages.get, None), timeout=LIMIT)
    for number in range(100):
        message = f"message {number}".encode()
        messages.put(message)
        assert next(answers) == b"answer to " + message
    messages.put(None)
    assert list(answers) == [] and answers.code() == grpc.StatusCode.OK


def errors(channel):
    error = error_of(lambda: channel.unary_unary("/interop.Calls/Fail")(b"", timeout=LIMIT))
    assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "50 % of ünïcode"), error
    assert dict(error.trailing_metadata())["x-why"] == "because", error
    answers = channel.unary_stream("/interop.Calls/FailLater")(b"", timeout=LIMIT)
    assert [next(answers) for _ in range(3)] == [b"1", b"2", b"3"]
    error = error_of(lambda: next(answers))
    assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "behind three messages"), error
    error = error_of(lambda: channel.unary_unary("/interop.Calls/Nothing")(b"", timeout=LIMIT))
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error


def given_up(channel, before):
    """A deadline and a cancelled call: the server hears of both."""
    answers = channel.unary_stream("/interop.Calls/Wait")(b"", timeout=1)
    assert next(answers) == b"begun"
    error = error_of(lambda: next(answers))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
    answers = channel.unary_stream("/interop.Calls/Wait")(b"", timeout=LIMIT)
    assert next(answers) == b"begun"
    answers.cancel()
    assert answers.code() == grpc.StatusCode.CANCELLED
    wanted = str(before + 2).encode()
    assert channel.unary_unary("/interop.Calls/GivenUp")(wanted, timeout=LIMIT) == b"yes"


if COMMAND == "calls":
    with channel(MORE[0] if MORE else None) as open_channel:
        for step in (unary, streams, interleaved, errors):
            step(open_channel)
        given_up(open_channel, 0)
    print(f"grpcio {grpc.__version__}: calls to {TARGET}{' under TLS' if MORE else ''}")
elif COMMAND == "names":
    names = collections.Counter()
    with channel() as open_channel:
        for _ in range(int(MORE[0])):
            _, call = open_channel.unary_unary("/interop.Calls/Echo").with_call(b"", timeout=LIMIT)
            names[dict(call.initial_metadata())["x-server"]] += 1
    for name, times in sorted(names.items()):
        print(name, times)
elif COMMAND == "down":
    with channel() as open_channel:
        error = error_of(lambda: open_channel.unary_unary("/interop.Calls/Echo")(b"", timeout=LIMIT))
        assert error.code() == grpc.StatusCode.UNAVAILABLE, error
        # The answer is balancer's: a client that reaches no server at all reports the same.
        fields = dict([*error.initial_metadata(), *error.trailing_metadata()])
        print(f"{fields['proxy-status']}\n{error.details()}")
elif COMMAND == "health":
    with channel() as open_channel:
        open_channel.unary_unary("/interop.Calls/SetHealth")(MORE[0].encode(), timeout=LIMIT)
else:
    sys.exit(__doc__)
