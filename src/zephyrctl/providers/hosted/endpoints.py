"""Where hosted models are asked: the vendors' own addresses, those in the environment, those in zephyrctl.yaml."""

from __future__ import annotations

import ipaddress
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from urllib.parse import urlsplit, urlunsplit

from zephyrctl.errors import UsageError
from zephyrctl.project import EndpointSection, Project
from zephyrctl.redact import redact

_FIRST_PAUSE = 5.0
_LONGEST_PAUSE = 60.0


@dataclass(frozen=True)
class Vendor:
    """A vendor's own address, and the variables that its SDK reads."""

    kind: str
    url: str
    url_variable: str
    key_variable: str
    key_example: str


OPENAI = Vendor("openai", "https://api.openai.com/v1", "OPENAI_BASE_URL", "OPENAI_API_KEY", "sk-…")
ANTHROPIC = Vendor(
    "anthropic", "https://api.anthropic.com", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY", "sk-ant-…"
)
VENDORS = {vendor.kind: vendor for vendor in (OPENAI, ANTHROPIC)}


@dataclass(frozen=True)
class Place:
    """Where a model is asked.

    `urls` are equal addresses over which calls are balanced; `origin` is what the ledger knows them by;
    `key_variable` None = no key is sent; `official` = the vendor's own address, where its table of models holds;
    `rpm` and `tpm` are requests and tokens per minute that it allows.
    """

    urls: tuple[str, ...]
    origin: str
    key_variable: str | None = None
    key_example: str = "…"
    official: bool = False
    offline: bool = False
    rpm: int | None = None
    tpm: int | None = None
    notices: tuple[str, ...] = ()


def vendor_place(vendor: Vendor, model: str) -> Place:
    """The vendor's own address, or the one that its variable in the environment names.

    Raises UsageError for an address that is neither https nor on this machine.
    """
    text = os.environ.get(vendor.url_variable, "").strip()
    if not text:
        return Place((vendor.url,), vendor.url, vendor.key_variable, vendor.key_example, official=True)
    url = checked_url(text, vendor.url_variable)
    if url.startswith("http:") and not is_loopback(url):
        raise UsageError(
            f"{vendor.url_variable} is plain http to another machine ({origin_of(url)}), where the key and the "
            "prompts could be read on the way",
            hint="use https, or name the server under endpoints: in zephyrctl.yaml and ask NAME:model",
        )
    origin = origin_of(url)
    notice = f"{vendor.url_variable} is set: {model} is asked at {origin}"
    return Place(
        (url.rstrip("/"),),
        origin,
        vendor.key_variable,
        vendor.key_example,
        official=origin == vendor.url,
        notices=(notice,),
    )


def named_place(project: Project, name: str) -> tuple[EndpointSection, Place]:
    """The endpoint called `name` in the project file.

    Raises UsageError listing the names that are there, for an address that cannot be one, and where a vendor's key
    would go to anybody else.
    """
    section = project.endpoints.get(name)
    if section is None:
        raise _unknown(name, list(project.endpoints), project.origin)
    where = f"{project.origin}: endpoints.{name}.base_url"
    urls = tuple(checked_url(url, where).rstrip("/") for url in section.base_url)
    if not urls and not section.offline:
        raise UsageError(f"{where} is empty", hint="give its address, or offline: true")
    for vendor in VENDORS.values():
        if section.key_env == vendor.key_variable and any(not _at(url, vendor) for url in urls):
            raise UsageError(
                f"{project.origin}: endpoints.{name} would send the key in {vendor.key_variable} to another address "
                f"than {vendor.url}",
                hint="put the key of that server into a variable of its own and name it as key_env",
            )
    place = Place(
        urls,
        section.origin or f"endpoint:{name}",
        section.key_env,
        offline=section.offline,
        rpm=section.rpm,
        tpm=section.tpm,
    )
    return section, place


def origin_of(url: str) -> str:
    """An address without query and last slash: the endpoint's name in keys and manifests."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    port = f":{parts.port}" if parts.port else ""
    return urlunsplit((parts.scheme, host + port, parts.path.rstrip("/"), "", ""))


def checked_url(url: str, where: str) -> str:
    """The address that `where` (a variable, a key of a file) holds.

    Raises UsageError for other schemes, a missing host, a user or password, and link-local hosts.
    """
    text = url.strip()
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise UsageError(f"{where} is not an address: {redact(text)}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise UsageError(f"{where} must be an http(s) address, got {redact(text)!r}")
    if "@" in parts.netloc:
        raise UsageError(
            f"{where} holds a user or a password ({redact(text)})",
            hint="put the key into a variable and name that: OPENAI_API_KEY, or key_env of an endpoint",
        )
    address = _address(host)
    if address is not None and address.is_link_local:
        raise UsageError(f"{where} is a link-local address ({host}), which no model is served from")
    return text


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _at(url: str, vendor: Vendor) -> bool:
    return urlsplit(url)[:2] == urlsplit(vendor.url)[:2]


def is_loopback(url: str) -> bool:
    """Whether an address is on this machine."""
    host = urlsplit(url).hostname or ""
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _unknown(name: str, known: Sequence[str], where: str) -> UsageError:
    near = get_close_matches(name, known, n=3)
    ours = "openai:NAME, anthropic:NAME, local:FOLDER, sandbox:ROLE"
    if near:
        hint = "did you mean " + " or ".join(near) + "?"
    elif known:
        hint = f"endpoints there: {', '.join(sorted(known))}; providers: {ours}"
    else:
        hint = f"name it under endpoints: in zephyrctl.yaml; providers: {ours}"
    return UsageError(f"no endpoint named '{name}' in {where}", hint=hint)


class Balance:
    """Equal addresses of one endpoint: the one with the fewest calls in flight takes the next.

    An address that cannot be reached is set aside for 5 s, then twice as long each time, up to 60 s. `clock` gives
    seconds and is there for tests.
    """

    def __init__(self, urls: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._in_flight = dict.fromkeys(urls, 0)
        self._pause: dict[str, float] = {}
        self._until: dict[str, float] = {}
        self.told: list[str] = []
        """One sentence for each address that was ever set aside."""

    @contextmanager
    def taken(self) -> Iterator[str]:
        """An address for one call. Raises ValueError where there is none."""
        now = self._clock()
        url = min(
            self._in_flight, key=lambda u: (max(0.0, self._until.get(u, 0.0) - now), self._in_flight[u])
        )
        # the last in the order of equals: one call after the other goes around
        self._in_flight[url] = self._in_flight.pop(url) + 1
        try:
            yield url
        finally:
            self._in_flight[url] -= 1

    def unreachable(self, url: str) -> None:
        """Set an address aside for a while; a single one has nothing to be set aside for."""
        if len(self._in_flight) < 2 or self._until.get(url, 0.0) > self._clock():
            return
        if url not in self._pause:
            self.told.append(
                f"{origin_of(url)} cannot be reached: its calls go to the other addresses for now"
            )
        pause = min(_LONGEST_PAUSE, 2 * self._pause.get(url, _FIRST_PAUSE / 2))
        self._pause[url] = pause
        self._until[url] = self._clock() + pause

    def reached(self, url: str) -> None:
        """An address that answers is as good as the others again."""
        self._until.pop(url, None)
        if self._pause.get(url):
            self._pause[url] = _FIRST_PAUSE / 2
