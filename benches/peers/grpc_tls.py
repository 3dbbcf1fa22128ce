"""What one gRPC stream of the C++ core carries over mutual TLS on loopback, each way.

usage: grpc_tls.py SERVER_CERT SERVER_KEY CLIENT_CERT CLIENT_KEY ROOT BYTES REPEATS

Server and client are processes of their own; messages are 1 MiB of bytes that nothing serialises.
Prints JSON: {"upload": [GB/s, ...], "download": [GB/s, ...]}.
"""

import concurrent.futures
import json
import subprocess
import sys
import time

import grpc

CHUNK = bytes(1 << 20)
OPTIONS = [("grpc.max_receive_message_length", 4 << 20)]


def read(path):
    with open(path, "rb") as file:
        return file.read()


def serve(certificate, key, root):
    def upload(requests, _):
        return str(sum(len(chunk) for chunk in requests)).encode()

    def download(request, _):
        for _ in range(int(request)):
            yield CHUNK

    handlers = {
        "upload": grpc.stream_unary_rpc_method_handler(upload),
        "download": grpc.unary_stream_rpc_method_handler(download),
    }
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2), options=OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", handlers),))
    credentials = grpc.ssl_server_credentials(
        [(read(key), read(certificate))], read(root), require_client_auth=True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    print(port, flush=True)
    sys.stdin.read()  # Ends when the client's process does.


def main():
    server_cert, server_key, client_cert, client_key, root, n_bytes, repeats = sys.argv[1:]
    n_chunks = int(n_bytes) // len(CHUNK)
    server = subprocess.Popen(
        [sys.executable, __file__, "serve", server_cert, server_key, root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        port = server.stdout.readline().strip()
        credentials = grpc.ssl_channel_credentials(read(root), read(client_key), read(client_cert))
        with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options=OPTIONS) as channel:
            upload = channel.stream_unary("/bench/upload")
            download = channel.unary_stream("/bench/download")
            upload(iter([CHUNK] * 16))
            rates = {"upload": [], "download": []}
            for _ in range(int(repeats)):
                began = time.perf_counter()
                got = int(upload(iter([CHUNK] * n_chunks)))
                assert got == n_chunks * len(CHUNK)
                rates["upload"].append(got / (time.perf_counter() - began) / 1e9)
                began = time.perf_counter()
                got = sum(len(chunk) for chunk in download(str(n_chunks).encode()))
                assert got == n_chunks * len(CHUNK)
                rates["download"].append(got / (time.perf_counter() - began) / 1e9)
        print(json.dumps(rates))
    finally:
        server.stdin.close()
        server.wait(10)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:])
    else:
        main()
