"""Whether the Hugging Face hub can be reached, which its own client finds out in half a minute."""

import socket
import threading
import urllib.parse
import urllib.request

from huggingface_hub import constants

SECONDS = 3  # to wait for an answer; a network that takes longer may only be slow


def is_unreachable() -> bool:
    """Whether the hub certainly cannot be reached, so that only its cache on this computer is left.

    This is so if its name is unknown, there is no way to it or nobody there; a network that is slow
    to answer, or that has a proxy, is left to the client of the hub.
    """
    if constants.HF_HUB_OFFLINE:
        return True
    address = urllib.parse.urlsplit(constants.ENDPOINT)
    host, port = address.hostname or "", address.port or (80 if address.scheme == "http" else 443)
    proxies = urllib.request.getproxies()
    if (address.scheme in proxies or "all" in proxies) and not urllib.request.proxy_bypass(host):
        return False
    failed: list[OSError] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), SECONDS).close()
        except TimeoutError:
            return
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=connect, daemon=True)  # names may take long to look up
    thread.start()
    thread.join(SECONDS)
    return bool(failed)
