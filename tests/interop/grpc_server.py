"""A gRPC server without generated code, all messages bytes: grpc_server.py NAME [PEM]; prints its port.

PEM, certificate and key in one file, puts it under TLS.
"""
import hashlib
import sys
import threading
from concurrent import futures

import grpc

NAME = sys.argv[1]


class State:
    """What calls leave behind for later ones."""

    def __init__(self):
        self.changed, self.given_up, self.is_serving = threading.Condition(), 0, True

    def give_up(self):
        with self.changed:
            self.given_up += 1
            self.changed.notify_all()


STATE = State()


def echo(request, context):
    """Gives message and metadata back, with the time that is left for the call."""
    asked = dict(context.invocation_metadata())
    left = context.time_remaining()
    context.send_initial_metadata((
        ("x-server", NAME),
        ("x-answer", asked.get("x-ask", "-")),
        ("x-answer-bin", asked.get("x-ask-bin", b"-")),
        ("x-left", "none" if left is None else f"{left:.3f}"),
    ))
    context.set_trailing_metadata((("x-last", "word"), ("x-last-bin", b"\x00\xfe\xff")))
    return request


def count(request, context):
    for number in range(int(request)):
        yield str(number).encode() * 100


def digest(messages, context):
    found = hashlib.sha256()
    for message in messages:
        found.update(message)
    return found.hexdigest().encode()


def talk(messages, context):
    """Answers each message before it reads the next."""
    for message in messages:
        yield b"answer to " + message


def fail(request, context):
    context.set_trailing_metadata((("x-why", "because"),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "50 % of ünïcode")


def fail_later(request, context):
    yield from (b"1", b"2", b"3")
    context.abort(grpc.StatusCode.DATA_LOSS, "behind three messages")


def wait(request, context):
    """Sends one message and nothing more until the client gives up."""
    over = threading.Event()

    def end():
        # Not behind the `yield`: grpcio does not come back to a call that ends while its message is being sent.
        STATE.give_up()
        over.set()

    context.add_callback(end)
    yield b"begun"
    over.wait(30)


def given_up(request, context):
    """Answers when that number of `Wait` calls were given up."""
    with STATE.changed:
        done = STATE.changed.wait_for(lambda: STATE.given_up >= int(request), 30)
    return b"yes" if done else b"no"


def set_health(request, context):
    STATE.is_serving = request == b"up"
    return b""


def health(request, context):
    """grpc.health.v1: SERVING is 1, NOT_SERVING is 2, in field 1."""
    return b"\x08\x01" if STATE.is_serving else b"\x08\x02"


CALLS = {
    "Echo": grpc.unary_unary_rpc_method_handler(echo),
    "Count": grpc.unary_stream_rpc_method_handler(count),
    "Digest": grpc.stream_unary_rpc_method_handler(digest),
    "Talk": grpc.stream_stream_rpc_method_handler(talk),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "FailLater": grpc.unary_stream_rpc_method_handler(fail_later),
    "Wait": grpc.unary_stream_rpc_method_handler(wait),
    "GivenUp": grpc.unary_unary_rpc_method_handler(given_up),
    "SetHealth": grpc.unary_unary_rpc_method_handler(set_health),
}

server = grpc.server(futures.ThreadPoolExecutor(16))
server.add_generic_rpc_handlers((
    grpc.method_handlers_generic_handler("interop.Calls", CALLS),
    grpc.method_handlers_generic_handler(
        "grpc.health.v1.Health", {"Check": grpc.unary_unary_rpc_method_handler(health)}),
))
if len(sys.argv) > 2:
    with open(sys.argv[2], "rb") as file:
        pem = file.read()
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(pem, pem)]))
else:
    port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port, flush=True)
server.wait_for_termination()
