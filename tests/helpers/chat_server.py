"""A real HTTP server on this machine that speaks the chat API, with answers that a test scripts."""

import base64
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

SOON = {"retry-after-ms": "1"}


def completion(text, tokens=100, finish="stop"):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    usage = {"prompt_tokens": tokens - 10, "completion_tokens": 10, "total_tokens": tokens}
    return {"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage}


class ChatServer(ThreadingHTTPServer):
    """Gives `replies` one by one, the last one forever; each is a text, or status, body and headers.

    A callable reply is called first and gives the reply. `requests` holds what came: path, headers, body.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies, self.requests, self.slowness = ["a drawing"], [], 0.0
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, *_):
        """Silence: clients that give up or are interrupted are what some tests are about."""

    @property
    def host(self):
        return f"127.0.0.1:{self.server_port}"

    def texts(self):
        """The text part of every request."""
        return [body["messages"][0]["content"][-1]["text"] for _, _, body in self.requests]

    def images(self, index):
        """The images of a request."""
        parts = self.requests[index][2]["messages"][0]["content"][:-1]
        urls = [part["image_url"]["url"].partition("base64,") for part in parts]
        assert all(head == "data:image/jpeg;" for head, _, _ in urls)
        return [Image.open(io.BytesIO(base64.b64decode(data))) for _, _, data in urls]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        replies = self.server.replies
        self.server.requests.append((self.path, self.headers, body))
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        reply = reply() if callable(reply) else reply
        status, content, headers = reply if isinstance(reply, tuple) else (200, completion(reply), {})
        time.sleep(self.server.slowness)
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass
