"""Where attachments are fetched and where never, what is believed of an answer, and what becomes of
one that cannot be had."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from chalicelib.archive import Archive
from chalicelib.attachments import FETCHING, LARGEST, MOST, WAITS, YOUNG, Attachments
from chalicelib.batches import Defer
from chalicelib.messages import InboundMessage, Keys, Media, MessageId
from chalicelib.vault import Vault
from tests.fakes import (
    HASH_KEY,
    NOW,
    OURS,
    SECRETS,
    THEIRS,
    FakeRuntime,
    aws_error,
    events,
    logged,
    settings,
)
from tests.simulation.stores.s3 import S3

pytestmark = pytest.mark.usefixtures("says_nothing")

PICTURE = b"\x89PNG of a heron" * 100
ACCOUNT = SECRETS["twilio"]["account_sid"]
API = f"https://api.twilio.com/2010-04-01/Accounts/{ACCOUNT}/Messages/MM1/Media/ME1"
CDN = "https://mms.twiliocdn.com/heron?Signature=a~b"
OPEN_CDN = "https://s3-external-1.amazonaws.com/media.twiliocdn.com/heron"
TELNYX = "https://media.telnyx.com/heron.png"
BASIC = (
    "Basic "
    + base64.b64encode(f"{ACCOUNT}:{SECRETS['twilio']['auth_tokens'][0]}".encode()).decode()
)
ID = MessageId("c" * 24, "d" * 24)
BUCKET = "spillway-test-archive-123456789012-us-east-1"

Answer = httpx.Response | Exception | Callable[[], httpx.Response]


def picture(content_type: str = "image/png", **headers: str) -> httpx.Response:
    return httpx.Response(200, content=PICTURE, headers={"Content-Type": content_type, **headers})


def redirect(to: str, status: int = 307) -> httpx.Response:
    return httpx.Response(status, headers={"Location": to})


class World:
    """Attachments on a network that answers by address."""

    def __init__(self, **variables: str) -> None:
        self.network: dict[str, Answer] = {}
        self.runtime = FakeRuntime(self._answer)
        self.s3 = S3()
        self.runtime.__dict__["s3"] = self.s3
        archive = Archive(self.runtime, Keys(HASH_KEY), stage="test", account="123456789012")
        self.attachments = Attachments(
            self.runtime,
            settings("processing", **variables),
            vault=Vault(self.runtime, "test"),
            archive=archive,
        )

    def _answer(self, request: httpx.Request) -> httpx.Response:
        answer = self.network[str(request.url)]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx.Response) else answer()

    def keep(
        self, *urls: str, content_type: str = "image/png", provider: str = "twilio", age: float = 90
    ) -> list[dict[str, Any]]:
        message = InboundMessage(
            provider=provider,
            account="AC1",
            id="MM1",
            sender=THEIRS,
            recipient=OURS,
            text="",
            received_at=NOW,
            media=tuple(Media(url, content_type) for url in urls),
        )
        return self.attachments.keep(ID, message, self.runtime.now() - age, {})

    def asked(self) -> list[tuple[str, str]]:
        """The addresses, each with the credentials that were shown."""
        return [
            (str(request.url), request.headers.get("Authorization", ""))
            for request in self.runtime.requests
        ]

    def kept(self) -> dict[str, dict[str, Any]]:
        found = self.s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return {one["Key"]: self.s3.get_object(Bucket=BUCKET, Key=one["Key"]) for one in found}


@pytest.fixture
def world() -> World:
    return World()


# --- kept ------------------------------------------------------------------------------------


def test_a_picture_is_fetched_as_twilio_has_it_and_kept_byte_for_byte(world: World) -> None:
    # GIVEN an API that wants credentials and redirects to a CDN
    world.network = {API: redirect(CDN), CDN: picture("image/PNG; charset=binary")}
    # WHEN it is fetched
    (found,) = world.keep(API, content_type="image/jpeg")
    # THEN the CDN is shown no credentials
    assert world.asked() == [(API, BASIC), (CDN, "")]
    assert all(
        request.headers["Accept-Encoding"] == "identity" for request in world.runtime.requests
    )
    # AND the message says where it is, and what
    key = f"media/{ID}-1"
    assert found == {
        "url": API,
        "content_type": "image/png",
        "key": key,
        "bytes": len(PICTURE),
        "sha256": hashlib.sha256(PICTURE).hexdigest(),
    }
    # AND nobody opens it by mistake
    (kept,) = world.kept().items()
    assert kept[0] == key
    assert kept[1]["Body"].read() == PICTURE
    assert kept[1]["ContentType"] == "image/png"
    assert kept[1]["ContentDisposition"] == "attachment"


def test_telnyxs_are_fetched_without_credentials(world: World) -> None:
    world.network = {TELNYX: picture()}
    (found,) = world.keep(TELNYX, provider="telnyx")
    assert found["key"] == f"media/{ID}-1"
    assert world.asked() == [(TELNYX, "")]


def test_each_of_several_has_its_own_object_and_what_failed_stops_no_other(world: World) -> None:
    world.network = {
        API: picture(),
        f"{API}2": httpx.Response(410),
        f"{API}3": picture("audio/amr"),
    }
    found = world.keep(API, f"{API}2", f"{API}3")
    assert [one.get("key") for one in found] == [f"media/{ID}-1", None, f"media/{ID}-3"]
    assert [one.get("error") for one in found] == [None, "gone", None]


def test_again_is_the_same_object(world: World) -> None:
    world.network = {API: picture}
    first = world.keep(API)
    world.runtime.clock += 86_400
    assert world.keep(API) == first
    assert list(world.kept()) == [f"media/{ID}-1"]


def test_what_is_kept_already_is_not_asked_for(world: World) -> None:
    known = {"content_type": "image/png", "key": "media/heron", "bytes": 1, "sha256": "a"}
    message = InboundMessage(
        "twilio", "AC1", "MM1", THEIRS, OURS, "", NOW, media=(Media(API, "image/png"),)
    )
    found = world.attachments.keep(ID, message, NOW, {API: known})
    assert found == [{"url": API, **known}]
    assert world.asked() == []


def test_no_message_has_more_than_ten(world: World) -> None:
    urls = [f"{API}{number}" for number in range(MOST + 2)]
    world.network = dict.fromkeys(urls, picture)
    found = world.keep(*urls)
    assert [one.get("error") for one in found] == [None] * MOST + ["too_many"] * 2
    assert len(world.kept()) == MOST


# --- where ---------------------------------------------------------------------------------------

STRANGE = {
    "another's host": "https://heron.example.com/x",
    "the metadata of a machine": "http://169.254.169.254/latest/meta-data/",
    "over TLS": "https://169.254.169.254/latest/meta-data/",
    "loopback": "https://127.0.0.1/x",
    "loopback by name": "https://localhost/x",
    "a decimal IP": "https://2852039166/latest/meta-data/",
    "an octal IP": "https://0251.0376.0251.0376/x",
    "a hexadecimal IP": "https://0xa9fea9fe/x",
    "IPv6": "https://[::1]/x",
    "IPv4 in IPv6": "https://[::ffff:169.254.169.254]/x",
    "no TLS": API.replace("https", "http"),
    "no TLS at the CDN": CDN.replace("https", "http"),
    "a file": "file:///etc/passwd",
    "ftp": "ftp://mms.twiliocdn.com/x",
    "no scheme": "//mms.twiliocdn.com/x",
    "no host": "https:///x",
    "nothing": "heron",
    "a user": "https://mms.twiliocdn.com@heron.example.com/x",
    "a user of theirs": "https://heron@mms.twiliocdn.com/x",
    "a password": "https://api.twilio.com:443@heron.example.com/2010-04-01/Accounts/x",
    "a port": "https://mms.twiliocdn.com:22/x",
    "its own port": "https://mms.twiliocdn.com:443/x",
    "a trailing dot": "https://mms.twiliocdn.com./x",
    "a name behind it": "https://mms.twiliocdn.com.heron.example.com/x",
    "a name before it": "https://heronmms.twiliocdn.com/x",
    "a name below it": "https://heron.mms.twiliocdn.com/x",
    "a backslash": "https://heron.example.com\\@mms.twiliocdn.com/x",
    "a backslash behind": "https://mms.twiliocdn.com\\.heron.example.com/x",
    "a fragment": "https://heron.example.com#@mms.twiliocdn.com/x",
    "a question": "https://heron.example.com?@mms.twiliocdn.com/x",
    "another dot": "https://mms\uff0etwiliocdn\u3002com/x",
    "another letter": "https://mms.twilioc\u217en.com/x",
    "punycode": "https://xn--mms-4na.twiliocdn.com/x",
    "an encoded host": "https://mms%2etwiliocdn.com/x",
    "a line end": "https://mms.twiliocdn.com/x\r\nHost: heron.example.com",
    "a line end behind": "https://mms.twiliocdn.com/x\n",
    "a blank": "https://mms.twiliocdn.com/ x",
    "a tab": "https://mms.twilio\tcdn.com/x",
    "another bucket": "https://s3-external-1.amazonaws.com/heron/x",
    "a bucket like it": "https://s3-external-1.amazonaws.com/media.twiliocdn.com.heron/x",
    "out of the bucket": "https://s3-external-1.amazonaws.com/media.twiliocdn.com/../heron/x",
    "out, encoded": "https://s3-external-1.amazonaws.com/media.twiliocdn.com/%2E%2E/heron/x",
    "out, encoded bar": "https://s3-external-1.amazonaws.com/media.twiliocdn.com/..%2Fheron/x",
    "another API": "https://api.twilio.com/2010-04-02/x",
    "out of the API": "https://api.twilio.com/2010-04-01/Accounts/../../x",
    "the other provider's": TELNYX,
}


@pytest.mark.parametrize("address", STRANGE.values(), ids=list(STRANGE))
def test_nobody_is_asked_who_is_not_on_the_list(world: World, address: str) -> None:
    assert [one["error"] for one in world.keep(address)] == ["refused_host"]
    assert world.asked() == []


# (What is relative is not strange there.)
ELSEWHERE = {name: STRANGE[name] for name in STRANGE if name not in ("nothing", "no scheme")}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("address", ELSEWHERE.values(), ids=list(ELSEWHERE))
def test_nobody_is_asked_because_somebody_redirects_to_them(
    world: World, address: str, status: int
) -> None:
    world.network = {API: httpx.Response(status, headers=[(b"Location", address.encode())])}
    # (What httpx cannot read as an address is a broken answer, which may be better the next time.)
    with suppress(Defer):
        assert [one["error"] for one in world.keep(API)] == ["refused_host"]
    assert world.asked() == [(API, BASIC)]


@pytest.mark.parametrize(
    ("address", "asked"),
    [
        (API.replace("https://api.twilio", "HTTPS://API.Twilio"), API),
        (OPEN_CDN, OPEN_CDN),
        ("https://media.twiliocdn.com/a..b?x=../%2e", None),
        ("https://mms.twiliocdn.com/a?x=../%2e%2f@:", "https://mms.twiliocdn.com/a?x=../%2e%2f@:"),
    ],
)
def test_what_is_on_the_list_is_asked_however_it_is_written(
    world: World, address: str, asked: str | None
) -> None:
    world.network = {asked: picture()} if asked else {}
    (found,) = world.keep(address)
    assert ("key" in found) is (asked is not None)


def test_a_redirect_may_be_relative_and_may_stay_at_the_api(world: World) -> None:
    world.network = {API: redirect(f"{API}.png".removeprefix("https://api.twilio.com"))}
    world.network[f"{API}.png"] = picture()
    assert "key" in world.keep(API)[0]
    assert world.asked() == [(API, BASIC), (f"{API}.png", BASIC)]


def test_redirects_come_to_an_end(world: World) -> None:
    world.network = {API: redirect(CDN), CDN: redirect(API)}
    assert world.keep(API)[0]["error"] == "redirects"
    assert [address for address, _ in world.asked()] == [API, CDN, API, CDN]


LOCAL = "http://127.0.0.1:8080/provider/twilio"


@pytest.mark.parametrize(
    ("address", "credentials"),
    [
        (f"{LOCAL}/2010-04-01/Accounts/x", BASIC),
        ("http://127.0.0.1:8080/elsewhere", ""),
        (CDN, ""),
        ("http://127.0.0.1:8081/x", None),
        ("https://127.0.0.1:8080/x", None),
        ("http://127.0.0.1/x", None),
        ("http://127.0.0.1:80800/x", None),
        ("http://127.0.0.2:8080/x", None),
        (API, None),
    ],
)
def test_where_the_api_is_elsewhere_its_address_is_on_the_list_and_no_other(
    address: str, credentials: str | None
) -> None:
    world = World(TWILIO_API_URL=LOCAL)
    world.network = {address: picture()}
    assert ("key" in world.keep(address)[0]) is (credentials is not None)
    assert world.asked() == ([] if credentials is None else [(address, credentials)])


# --- what is believed ----------------------------------------------------------------------------


class Endless(httpx.SyncByteStream):
    """More than anybody would keep; `read` is how much of it was taken."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[bytes]:
        while True:
            self.read += 65_536
            yield bytes(65_536)


def test_what_says_that_it_is_too_large_is_not_read(world: World) -> None:
    body = Endless()
    headers = {"Content-Type": "image/png", "Content-Length": str(LARGEST + 1)}
    world.network = {API: httpx.Response(200, stream=body, headers=headers)}
    assert world.keep(API)[0]["error"] == "too_large"
    assert body.read == 0


@pytest.mark.parametrize("declared", ["", "10", "-1", "heron"])
def test_what_is_too_large_is_cut_off_whatever_it_says(world: World, declared: str) -> None:
    body = Endless()
    headers = {"Content-Type": "image/png", **({"Content-Length": declared} if declared else {})}
    world.network = {API: httpx.Response(200, stream=body, headers=headers)}
    assert world.keep(API)[0]["error"] == "too_large"
    assert LARGEST < body.read <= LARGEST + 65_536
    assert world.kept() == {}


def test_as_large_as_may_be_is_kept(world: World) -> None:
    headers = {"Content-Type": "video/mp4"}
    world.network = {API: httpx.Response(200, content=bytes(LARGEST), headers=headers)}
    assert world.keep(API)[0]["bytes"] == LARGEST


def test_what_is_packed_is_not_unpacked(world: World) -> None:
    headers = {"Content-Type": "image/png", "Content-Encoding": "gzip"}
    world.network = {API: httpx.Response(200, stream=Endless(), headers=headers)}
    assert world.keep(API)[0]["error"] == "wrong_type"


@pytest.mark.parametrize(
    ("answered", "said", "kept"),
    [
        ("image/jpeg", "", "image/jpeg"),
        ("IMAGE/HEIC", "image/png", "image/heic"),
        ("audio/amr-nb", "", "audio/amr-nb"),
        ("video/3gpp;codecs=x", "", "video/3gpp"),
        ("text/x-vcard", "", "text/x-vcard"),
        ("application/pdf", "", "application/pdf"),
        ("text/plain", "", "text/plain"),
        # Who says nothing is taken by the webhook's word, which is signed.
        ("", "image/png", "image/png"),
        ("application/octet-stream", "image/png; name=x", "image/png"),
        ("binary/octet-stream", "text/html", None),
        ("", "", None),
        ("application/octet-stream", "application/octet-stream", None),
        ("text/html", "image/png", None),
        ("application/json", "image/png", None),
        ("image/svg+xml", "image/png", None),
        ("application/xhtml+xml", "image/png", None),
        ("text/javascript", "image/png", None),
        ("image/", "image/png", None),
        ("image/png heron", "image/png", None),
        ("image/pn\u0261", "image/png", None),
    ],
)
def test_a_type_is_one_that_phones_send(
    world: World, answered: str, said: str, kept: str | None
) -> None:
    headers = [(b"Content-Type", answered.encode())] if answered else []
    world.network = {f"{API}.png": httpx.Response(200, content=PICTURE, headers=headers)}
    (found,) = world.keep(f"{API}.png", content_type=said)
    if kept is None:
        assert (found["error"], found["content_type"]) == ("wrong_type", said)
        assert world.kept() == {}
    else:
        assert found["content_type"] == kept
        assert world.kept()[found["key"]]["ContentType"] == kept


# --- what cannot be had --------------------------------------------------------------------------


def slow(world: World) -> Callable[[], httpx.Response]:
    """A body that comes a byte at a time."""

    class Dripping(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            while True:
                world.runtime.clock += 1
                yield b"x"

    return lambda: httpx.Response(200, stream=Dripping(), headers={"Content-Type": "image/png"})


LATER: dict[str, Callable[[World], Answer]] = {
    "no connection": lambda _: httpx.ConnectError(f"heron {THEIRS}"),
    "a time-out": lambda _: httpx.ReadTimeout(f"heron {THEIRS}"),
    "cut off": lambda _: httpx.RemoteProtocolError(f"heron {THEIRS}"),
    "500": lambda _: httpx.Response(500),
    "503": lambda _: httpx.Response(503),
    "429": lambda _: httpx.Response(429),
    "401": lambda _: httpx.Response(401),
    "403": lambda _: httpx.Response(403),
    "408": lambda _: httpx.Response(408),
    "drop by drop": slow,
}


@pytest.mark.parametrize("answer", LATER.values(), ids=list(LATER))
def test_what_may_come_is_waited_for_an_hour_and_then_the_text_goes_without(
    world: World, answer: Callable[[World], Answer], capsys: pytest.CaptureFixture[str]
) -> None:
    world.network = {API: answer(world)}
    with pytest.raises(Defer, match=r"^media: ") as deferred:
        world.keep(API, age=WAITS - 1)
    assert THEIRS not in str(deferred.value)

    (found,) = world.keep(API, age=WAITS)
    assert found == {"url": API, "content_type": "image/png", "error": "unavailable"}
    lines = logged(capsys)
    assert events(lines) == ["media_not_kept"]
    (metric,) = (line for line in lines if "MediaFailures" in line)
    assert (metric["reason"], metric["provider"], metric["id"]) == (
        "unavailable",
        "twilio",
        str(ID),
    )


def test_it_comes_after_all(world: World) -> None:
    world.network = {API: httpx.Response(503)}
    with pytest.raises(Defer):
        world.keep(API)
    world.network = {API: picture()}
    assert "key" in world.keep(API)[0]


def test_one_that_may_come_is_waited_for_though_another_never_will(world: World) -> None:
    world.network = {API: httpx.Response(410), f"{API}2": httpx.Response(503)}
    with pytest.raises(Defer):
        world.keep(API, f"{API}2")


@pytest.mark.parametrize(("asked", "waited"), [("20", 20.0), ("43200", 600.0), ("", None)])
def test_a_provider_may_say_when_but_not_longer_than_is_waited(
    world: World, asked: str, waited: float | None
) -> None:
    headers = {"Retry-After": asked} if asked else {}
    world.network = {API: httpx.Response(429, headers=headers)}
    with pytest.raises(Defer) as deferred:
        world.keep(API, age=WAITS - 600)
    assert deferred.value.after == waited


def test_a_picture_that_twilio_does_not_have_yet_is_waited_for(world: World) -> None:
    world.network = {API: httpx.Response(404)}
    with pytest.raises(Defer):
        world.keep(API, age=YOUNG - 1)
    assert world.keep(API, age=YOUNG)[0]["error"] == "gone"


@pytest.mark.parametrize(("status", "error"), [(410, "gone"), (400, "refused"), (204, "refused")])
def test_what_never_comes_is_not_waited_for(world: World, status: int, error: str) -> None:
    world.network = {API: httpx.Response(status)}
    assert world.keep(API, age=0)[0]["error"] == error


@pytest.mark.parametrize("held", [{}, {"account_sid": "x"}, None, "down"])
def test_for_want_of_credentials_no_text_is_held_longer(world: World, held: Any) -> None:
    if held == "down":
        world.runtime.vault.fails = aws_error("AccessDeniedException", "GetSecretValue")
    elif held is None:
        del world.runtime.vault.held["twilio"]
    else:
        world.runtime.vault.held["twilio"] = held
    with pytest.raises(Defer, match=r"^media: credentials$"):
        world.keep(API)
    assert world.keep(API, age=WAITS)[0]["error"] == "unavailable"
    assert world.asked() == []


def test_a_rotated_secret_is_looked_for_before_the_next_try(world: World) -> None:
    world.network = {API: httpx.Response(401)}
    with pytest.raises(Defer):
        world.keep(API)
    fresh = {"account_sid": ACCOUNT, "auth_tokens": ["another token of a heron"]}
    world.runtime.vault.held["twilio"] = fresh
    world.runtime.clock += 3
    with pytest.raises(Defer):
        world.keep(API)
    with pytest.raises(Defer):
        world.keep(API)
    credentials = [shown for _, shown in world.asked()]
    assert credentials[0] == credentials[1] == BASIC != credentials[2]


def test_one_of_a_provider_that_is_not_in_use_is_not_asked_for() -> None:
    world = World(PROVIDERS="telnyx", NUMBERS="")
    with pytest.raises(Defer, match=r"^media: no_provider$"):
        world.keep(API)
    assert world.keep(API, age=WAITS)[0]["error"] == "unavailable"


def test_where_the_archive_is_down_the_message_waits(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(**_: Any) -> None:
        raise aws_error("SlowDown", "PutObject")

    world.network = {API: picture()}
    monkeypatch.setattr(world.s3, "put_object", down)
    with pytest.raises(type(aws_error("x")), match="SlowDown"):
        world.keep(API, age=WAITS)


def test_no_attachment_takes_longer_than_all_of_them_may(world: World) -> None:
    world.network = {API: slow(world)}
    began = world.runtime.clock
    with pytest.raises(Defer, match=r"^media: too_slow$"):
        world.keep(API)
    assert FETCHING - 1 <= world.runtime.clock - began <= FETCHING + 1
