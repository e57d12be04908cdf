"""Which version answers, when one on trial is taken back, and that nobody notices a promotion: with a stub of vLLM, without Ray."""

import asyncio
import collections
import dataclasses
import json

import pytest
from contract_table import CHAT, chat
from endpoint_stub import MODES, StubCall, StubEngine, application, client, models

from cluster.resources import ServePlan
from serving import promotion_log
from serving.gates import GateOptions
from serving.ingress import Follower
from serving.promotion import to_make_room
from serving.relay import Relay
from serving.replies import Refusal
from serving.table_store import Seen
from serving.trial import Outcomes
from serving.versions import (
    CANARY,
    KEPT,
    LEAVING,
    PROMOTED,
    SHADOW,
    TAKEN_BACK,
    Asker,
    Bounds,
    Row,
    Table,
    answering,
    place_of,
    rows_of,
)
from vidalign.config.run import ServeConfig

MODELS = models(MODES[1])


def row(version, state, **fields):
    served = dataclasses.replace(MODELS["aligned"], version=version)
    return Row(
        target=f"aligned@{version}", model_id="aligned", served=served, state=state, application=f"app@{version}", **fields
    )


TRIAL = [row("old", PROMOTED), row("new", CANARY, share=0.1)]


# Which version answers


def test_a_canary_gets_its_share_and_each_user_the_same_version_always():
    users = [f"user {number}" for number in range(4000)]
    first = [answering(TRIAL, Asker(who=who)).version for who in users]
    assert first == [answering(TRIAL, Asker(who=who)).version for who in users]
    assert 0.08 < first.count("new") / len(users) < 0.12
    grown = [TRIAL[0], dataclasses.replace(TRIAL[1], share=0.5)]
    assert all(
        answering(grown, Asker(who=who)).version == "new" for who, was in zip(users, first, strict=True) if was == "new"
    )
    assert place_of("user 1", "new") != place_of("user 1", "newer"), "another canary gets other users"


@pytest.mark.parametrize(
    ("asker", "version"),
    [
        (Asker(canary=True), "new"),
        (Asker(canary=False), "old"),
        (Asker(version="new"), "new"),
        (Asker(version="old", canary=True), "old"),
    ],
)
def test_headers_say_which_version_is_wanted(asker, version):
    for number in range(40):
        assert answering(TRIAL, dataclasses.replace(asker, who=str(number))).version == version


def test_a_version_that_is_not_there_or_leaves_is_refused_by_its_name():
    with pytest.raises(Refusal, match=r"aligned has no version 'newer' \(x-policy-version\); it has old, new"):
        answering(TRIAL, Asker(version="newer"))
    with pytest.raises(Refusal, match=r"it has old$"):
        answering([TRIAL[0], dataclasses.replace(TRIAL[1], state=LEAVING)], Asker(version="new"))


def test_a_canary_that_does_not_work_gets_only_who_asks_for_it():
    for number in range(100):
        assert answering(TRIAL, Asker(who=str(number)), lambda found: found.version == "old").version == "old"
    assert answering(TRIAL, Asker(canary=True), lambda found: False).version == "new"


@pytest.mark.parametrize("state", [SHADOW, KEPT, TAKEN_BACK])
def test_what_is_not_promoted_answers_nobody_by_itself(state):
    rows = [TRIAL[0], row("new", state)]
    assert {answering(rows, Asker(who=str(number), canary=True)).version for number in range(100)} == {"old"}


# The table


def test_a_promotion_keeps_what_answered_before_and_a_rollback_brings_it_back():
    table = Table(id="i", rows=(*rows_of(MODELS), row("1", KEPT), row("2", KEPT)))
    one = table.promote("aligned@1", "t1")
    two = one.promote("aligned@2", "t2")
    assert [t.promoted().version for t in (table, one, two)] == ["v-aligned", "1", "2"]
    assert (two.back().version, two.serial) == ("1", table.serial + 2)
    assert two.promoted("base").version == "v-base"
    back = two.promote(two.back().target, "t3", before=TAKEN_BACK)
    assert (back.promoted().version, back.find("2").state, back.back().version) == ("1", TAKEN_BACK, "v-aligned")


# The rule that takes a version back


def outcomes(failed=0, of=40, seconds=1.0, usual=1.0, promoted=40):
    found = Outcomes()
    for number in range(of):
        found.note("new", failed=number < failed, seconds=seconds)
    for _ in range(promoted):
        found.note("old", failed=False, seconds=usual)
    return found.verdict("new", "old", Bounds())


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ({}, ""),
        ({"failed": 2}, ""),
        ({"failed": 3}, "3 of its last 40 requests failed (8%), and the bound is 5%"),
        ({"failed": 19, "of": 19}, ""),
        ({"failed": 20, "of": 20}, "20 of its last 20 requests failed"),
        ({"seconds": 1.9}, ""),
        ({"seconds": 2.1}, "its requests take 2.1 s (90th percentile) and those of the promoted version 1 s"),
        ({"seconds": 2.1, "promoted": 19}, ""),
        ({"seconds": 0.05, "usual": 0.01}, ""),
        ({"failed": 40, "promoted": 0}, "40 of its last 40"),
    ],
)
def test_a_version_on_trial_is_taken_back_when_it_fails_or_is_slow(case, why):
    found = outcomes(**case)
    assert found.startswith(why) if why else found == ""


# Behind the gate


class Kept:
    """The cluster's store."""

    def __init__(self):
        self.table, self.seen = None, Seen()

    def read(self):
        return self.table

    def read_seen(self):
        return self.seen

    def write(self, table):
        self.table = table

    def write_seen(self, seen):
        self.seen = seen


class Endpoint:
    """The gate, the relay and the ingress's follower, with a stub of vLLM for each version."""

    def __init__(self, serve=None, look_s=0.01, first="i"):
        self.engines = collections.defaultdict(StubEngine)
        options = GateOptions(
            models=MODELS, serve=ServeConfig.model_validate(serve or {}), id=first, apart={"aligned": "app@v-aligned"}
        )
        self.relay = Relay({"base": self._call("base")}, {"base": self._alive("base")})
        self.catalog, self.kept = options.catalog(lambda: self.relay.up), Kept()
        self.first = Table(id=first, rows=options.rows())
        self.follower = Follower(
            self.catalog,
            self.relay,
            self.kept,
            lambda row: (self._call(row.target), self._alive(row.target)),
            bound=("base",),
            look_s=look_s,
        )
        self.app = options.gate(self.relay, self.catalog)

    def _call(self, target):
        return lambda scope, body: StubCall(self.engines[target], scope, body)

    def _alive(self, target):
        async def alive():
            return self.engines[target].works

        return alive

    async def __aenter__(self):
        await self.follower.begin(self.first)
        self._following = asyncio.create_task(self.follower.follow())
        return self

    async def __aexit__(self, *_):
        self._following.cancel()

    async def switch(self, table):
        """As `serving.promotion.switch`."""
        self.kept.write(table)
        while self.kept.seen.serial < table.serial:
            await asyncio.sleep(0.001)
        return table

    async def take_down(self, table, target):
        """As `serving.promotion.take_down`; the engine is gone with its application."""
        table = await self.switch(table.changed(target, state=LEAVING))
        while self.kept.seen.busy.get(target):
            await asyncio.sleep(0.001)
        table = await self.switch(table.without(target))
        assert not self.engines[target].running
        self.engines[target].works = False
        return table


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


async def ask(asking, user="u", model="aligned", **headers):
    reply = await asking.post(CHAT, json=chat(user=user) | {"model": model}, headers=headers)
    return reply.status_code, reply.headers.get("x-policy-version")


def test_nothing_fails_during_twenty_promotions_under_load():
    async def promoting():
        seen, stop = [], asyncio.Event()
        async with Endpoint() as endpoint, client(endpoint.app) as asking:

            async def load(number):
                while not stop.is_set():
                    seen.append(await ask(asking, f"user {number}"))
                    await asyncio.sleep(0)

            clients = [asyncio.create_task(load(number)) for number in range(8)]
            table = endpoint.kept.table
            for number in range(1, 21):
                new = row(str(number), KEPT)
                endpoint.engines[new.target].delay_s = 0.002
                table = await endpoint.switch(table.added(new).promote(new.target, f"t{number:02}"))
                begun = len(seen)
                while len(seen) < begun + 16:
                    await asyncio.sleep(0.002)
                for idle in [each for each in table.of("aligned") if each.state == KEPT and each != table.back()]:
                    table = await endpoint.take_down(table, idle.target)
            stop.set()
            await asyncio.gather(*clients)
            return seen, table

    seen, table = run(promoting())
    assert {status for status, _ in seen} == {200}
    assert len(seen) > 320
    order = [version for _, version in seen]
    assert list(dict.fromkeys(order)) == ["v-aligned", *map(str, range(1, 21))]
    assert [each.version for each in table.of("aligned")] == ["19", "20"]


def test_ids_cards_and_numbers_follow_the_table():
    async def asking_of():
        async with Endpoint() as endpoint, client(endpoint.app) as asking:
            before = [card["id"] for card in (await asking.get("/v1/models")).json()["data"]]
            exact = await ask(asking, model="aligned@v-aligned")
            table = endpoint.kept.table
            table = await endpoint.switch(table.added(row("new", CANARY, share=0.25)).changed("aligned", source="run:0"))
            cards = {card["id"]: card["metadata"] for card in (await asking.get("/v1/models")).json()["data"]}
            one = (await asking.get("/v1/models/aligned@new")).json()
            asked = [await ask(asking, model=f"aligned@{version}") for version in ("new", "v-aligned", "other")]
            both = await ask(asking, model="aligned@new", **{"x-policy-version": "v-aligned"})
            health = (await asking.get("/health")).json()
            endpoint.engines["aligned@new"].works = endpoint.relay.up["aligned@new"] = False
            red = await asking.get("/health")
            await endpoint.switch(table.promote("aligned@new", "t"))
            down = await asking.get("/health")
            numbers = (await asking.get("/metrics")).text
            return before, exact, cards, one, asked, both, health, red, down, numbers

    before, exact, cards, one, asked, both, health, red, down, numbers = run(asking_of())
    assert before == ["base", "aligned"], "as long as there is one version of each"
    assert exact == (200, "v-aligned")
    assert list(cards) == ["base", "aligned", "aligned@v-aligned", "aligned@new"]
    assert (cards["aligned"]["policy_version"], cards["aligned@new"]["state"], cards["aligned@new"]["share"]) == (
        "v-aligned",
        "canary",
        0.25,
    )
    assert one["metadata"] == cards["aligned@new"]
    assert asked == [(200, "new"), (200, "v-aligned"), (404, None)]
    assert both == (400, None)
    assert health["models"] == {"base": True, "aligned": True, "aligned@new": True}
    assert (red.status_code, red.json()["models"]["aligned@new"]) == (200, False), (
        "a trial that fails is no fault of the endpoint"
    )
    assert down.status_code == 503
    assert 'vidalign_policy_info{model="aligned",policy_version="new"} 1.0' in numbers
    assert 'vidalign_policy_info{model="aligned",policy_version="v-aligned"}' not in numbers
    assert 'vidalign_requests_total{model="aligned@new",path="/v1/chat/completions",status="200"} 1.0' in numbers


def test_the_engine_gets_the_name_that_it_has_and_a_wrong_wish_is_refused():
    async def asking_of():
        async with Endpoint() as endpoint, client(endpoint.app) as asking:
            await endpoint.switch(endpoint.kept.table.added(row("new", KEPT)))
            await ask(asking, model="aligned@new")
            wishes = [
                await asking.post(CHAT, json=chat() | {"model": "aligned"}, headers=headers)
                for headers in ({"x-canary": "maybe"}, {"x-policy-version": "gone"}, {"x-policy-version": "new"})
            ]
            return endpoint.engines["aligned@new"].asked[0]["model"], wishes

    name, [maybe, gone, new] = run(asking_of())
    assert name == "aligned"
    assert (maybe.status_code, maybe.json()["error"]["message"]) == (400, "x-canary must be true or false, got 'maybe'")
    assert gone.status_code == 404
    assert new.headers["x-policy-version"] == "new"


@pytest.mark.parametrize("mode", MODES)
def test_an_endpoint_with_one_version_of_each_model_takes_the_headers_too(mode):
    async def asking_of():
        async with client(application(mode, StubEngine())) as asking:
            wishes = ({"x-policy-version": "v-base"}, {"x-policy-version": "other"}, {"x-canary": "true"}, {"x-canary": "1"})
            found = [await ask(asking, model="base", **wish) for wish in wishes]
            return [*found, await ask(asking, model="base@v-base"), await ask(asking, model="base@other")]

    assert run(asking_of()) == [(200, "v-base"), (404, None), (200, "v-base"), (400, None), (200, "v-base"), (404, None)]


@pytest.mark.parametrize("mode", ["fails", "is down", "is slow"])
def test_a_bad_canary_is_taken_back_by_the_endpoint_and_the_log_says_why(mode, tmp_path):
    async def asking_of():
        async with Endpoint() as endpoint, client(endpoint.app) as asking:
            for target in ("aligned", "aligned@new"):
                endpoint.engines[target].delay_s = 0.004
            bad = endpoint.engines["aligned@new"]
            if mode == "is slow":
                bad.delay_s = 0.4
            canary = row(
                "new", CANARY, share=0.5, run=str(tmp_path), bounds=Bounds(min_requests=4), since="t1", source="run:1"
            )
            table = await endpoint.switch(endpoint.kept.table.added(canary))
            if mode == "is down":
                endpoint.relay.up["aligned@new"] = bad.works = False
            if mode == "fails":
                bad.fails = True
            seen = [await ask(asking, f"user {number}") for number in range(90)]
            while not endpoint.kept.seen.verdicts or not (tmp_path / promotion_log.FILE).is_file():
                await asyncio.sleep(0.001)
            exact = await ask(asking, model="aligned@new")
            verdicts, lines = endpoint.kept.seen.verdicts, (tmp_path / promotion_log.FILE).read_text().splitlines()
            # Another trial of the same version is judged anew.
            bad.fails, bad.delay_s, bad.works = False, 0.004, True
            endpoint.relay.up["aligned@new"] = True
            await endpoint.switch(table.changed("aligned@new", since="t2"))
            again = [await ask(asking, f"user {number}") for number in range(40)]
            return seen, exact, verdicts, lines, again

    seen, exact, verdicts, lines, again = run(asking_of())
    assert set(seen[-20:]) == {(200, "v-aligned")}
    failed = [status for status, _ in seen if status != 200]
    assert len(failed) == (4 if mode == "fails" else 0)
    assert exact == {"fails": (500, "new"), "is down": (503, None), "is slow": (200, "new")}[mode]
    [(trial, why)] = verdicts.items()
    assert trial == "aligned@new t1"
    assert ("failed (100%)" in why) == (mode != "is slow")
    [entry] = map(json.loads, lines)
    assert (entry["step"], entry["from"], entry["to"], entry["outcome"], entry["why"]) == (
        "rollback",
        "new",
        "v-aligned",
        "automatic",
        why,
    )
    assert "new" in {version for _, version in again}


def test_an_ingress_that_starts_again_goes_on_with_the_table_and_its_verdicts():
    async def starting():
        async with Endpoint() as endpoint:
            table = endpoint.kept.table.added(row("new", PROMOTED)).changed("aligned", state=KEPT)
            table = await endpoint.switch(table.added(row("third", CANARY, share=1.0, since="t")))
            endpoint.kept.seen = dataclasses.replace(endpoint.kept.seen, verdicts={"aligned@third t": "slow"})
        again, other = Endpoint(), Endpoint(first="another start")
        again.kept = again.follower._kept = endpoint.kept
        async with again, client(again.app) as asking:
            found = await ask(asking)
        other.kept = other.follower._kept = endpoint.kept
        async with other, client(other.app) as asking:
            return found, await ask(asking), other.kept.table.id

    assert run(starting()) == ((200, "new"), (200, "v-aligned"), "another start")


def test_a_shadow_gets_copies_and_its_failures_reach_nobody():
    async def asking_of():
        async with Endpoint() as endpoint, client(endpoint.app) as asking:
            shadow = endpoint.engines["aligned@new"]
            await endpoint.switch(endpoint.kept.table.added(row("new", SHADOW, since="t")))
            seen = [await ask(asking, f"user {number}") for number in range(10)]
            base = await ask(asking, model="base")
            await asyncio.sleep(0.05)
            copies = len(shadow.asked)
            shadow.fails = True
            seen += [await ask(asking) for _ in range(30)]
            await asyncio.sleep(0.1)
            numbers = (await asking.get("/metrics")).text
            return seen, base, copies, endpoint.kept.seen.verdicts, numbers

    seen, base, copies, verdicts, numbers = run(asking_of())
    assert set(seen) == {(200, "v-aligned")}
    assert base == (200, "v-base")
    assert copies == 10
    assert list(verdicts) == ["aligned@new t"]
    assert 'vidalign_requests_total{model="aligned@new",path="shadow",status="200"} 10.0' in numbers


def test_a_slow_shadow_delays_nobody_and_holds_no_more_than_its_places():
    async def asking_of():
        limits = {"limits": {"max_sequences": 4, "max_sequences_per_request": 4}}
        async with Endpoint(limits) as endpoint, client(endpoint.app) as asking:
            shadow = endpoint.engines["aligned@new"]
            shadow.delay_s = 600.0
            await endpoint.switch(endpoint.kept.table.added(row("new", SHADOW)))
            started_at = asyncio.get_running_loop().time()
            seen = [await ask(asking) for _ in range(20)]
            return seen, asyncio.get_running_loop().time() - started_at, shadow.running

    seen, seconds, running = run(asking_of())
    assert set(seen) == {(200, "v-aligned")}
    assert seconds < 60
    assert running == 4


# Room


def plan(**fields):
    shares = {
        "server_cpus": 0.4,
        "bundle_cpus": 0.4,
        "bundle_gpus": 0.0,
        "ingress_cpus": 0.2,
        "gpu_memory_utilization": None,
    }
    counts = {"num_models": 2, "min_replicas": 1, "max_replicas": 1, "num_devices": 1, "one_node": True}
    return ServePlan(**{**shares, **counts, **fields})


def test_room_for_one_more_is_on_one_node_or_what_is_given_up():
    idle = [row("a", TAKEN_BACK), row("b", KEPT)]
    one = plan(server_cpus=1.0, bundle_cpus=1.0, bundle_gpus=1.0, num_devices=2)
    assert to_make_room([{"CPU": 4.0, "GPU": 2.0}], one, idle) == []
    assert to_make_room([{"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}], one, idle) == idle[:1]
    assert to_make_room([{"CPU": 9.0}], one, []) is None
    two = dataclasses.replace(one, min_replicas=2)
    assert to_make_room([{"CPU": 4.0, "GPU": 2.0}], two, idle) == idle[:1]
    assert to_make_room([{"CPU": 6.0, "GPU": 4.0}], two, idle) == []
    assert to_make_room([{"CPU": 0.8}], plan(), []) == []
    assert to_make_room([{"CPU": 0.79}], plan(), []) is None
