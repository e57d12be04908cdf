"""LeanPO's data recipe (arXiv 2506.05260): hints and reflection for the chosen side, augmented videos for the rejected one.

    turn 1   question + hint (the ground truth), clean video       ─► n "hinted" responses
    turn 2…K fresh prompt quoting the previous response            ─► n "reflected" responses per turn
    losers   question alone, augmented video                       ─► n "augmented" responses    (negatives: augmented, both)
             ground truth with one segment resampled               ─► n "replayed" responses     (negatives: replayed, both)
    score    every distinct response, question alone, clean video  ─► reward (average log-likelihood) and trust

    pair     best_vs_worst         chosen = highest trust x exp(reward) among hinted and reflected responses; rejected = lowest
                                   trust among augmented ones. On a tie the response that the policy finds likelier is rejected,
                                   as it is the error that the policy would really make. This rule is ours.
             hinted_vs_augmented   chosen = last turn of candidate 0; rejected = augmented candidate 0. These are the sides that
                                   LeanPO's authors take, who sample one response per side; which pairs are kept is our rule.
             …_unfiltered          the same, and every pair of two different texts is kept, as by the authors' script.

Everything goes to one engine, so that the n candidates and the reflection turns share its prefix and vision caches.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from vidalign import prompts
from vidalign.config.recipes import LeanpoRecipe
from vidalign.data.answers import AGREES
from vidalign.data.reading import DataRow
from vidalign.recipes.base import Asked, Evidence, Recipe, Replays
from vidalign.recipes.engine import Engine, Request
from vidalign.recipes.kinds import is_cut, kinds_on
from vidalign.recipes.pairing import build_pair, is_known_wrong, side, why_no_preference
from vidalign.recipes.replay import Cut, cut, draw
from vidalign.recipes.sampling import Chunk
from vidalign.types import Example, PreferencePair, Response, stable_hash
from vidalign.video.scene import Shown, changed

CHOSEN = kinds_on("chosen")


class Leanpo(Recipe[LeanpoRecipe]):
    """Hinted and reflected responses against responses to an augmented video, or against replays of the ground truth."""

    Config = LeanpoRecipe

    @property
    def keeps_replays(self) -> bool:
        return self.config.negatives != "augmented"

    def respond(
        self, engine: Engine, examples: Sequence[Example], clips: Sequence[Shown], *, policy_version: str, seed: int
    ) -> list[Response]:
        """Sample and score every candidate of both sides for these examples."""
        chunk = Chunk(engine, examples, clips, policy_version, seed, self.config.trust)
        responses = self.winners(chunk)
        if self.config.negatives != "replayed":
            responses += self._augmented(chunk)
        if self.config.negatives != "augmented":
            responses += self._replayed(chunk)
        return chunk.score(responses, self.config.plain_prompt)

    def winners(self, chunk: Chunk) -> list[Response]:
        """The hinted responses and every turn of reflection on them, not yet scored."""
        config = self.config
        slots = [(row, candidate) for row in range(len(chunk.examples)) for candidate in range(config.num_candidates)]
        responses: list[Response] = []
        previous = [""] * len(slots)
        for turn in range(config.num_turns):
            kind = "reflected" if turn else "hinted" if config.hints else "unhinted"
            template = config.reflect_prompt if turn else config.hint_prompt if config.hints else config.plain_prompt
            asked = []
            for (row, candidate), earlier in zip(slots, previous, strict=True):
                example = chunk.examples[row]
                request = Request(
                    prompt=prompts.fill(template, question=example.question, answer=example.answer, previous=earlier),
                    clip=chunk.clips[row],
                    seed=chunk.request_seed(row, kind, candidate, turn),
                    temperature=config.temperature,
                    top_p=config.top_p,
                    max_new_tokens=config.max_new_tokens,
                )
                asked.append((row, candidate, request))
            replies = chunk.ask(kind, asked, turn)
            previous = [reply.text.strip() for reply in replies]
            responses += replies
        return responses

    def _augmented(self, chunk: Chunk) -> list[Response]:
        from vidalign.video.augment import augment  # imports torchvision, which takes a second

        def request(row: int, candidate: int) -> Request:
            draw = chunk.request_seed(row, "augmented", candidate)
            rng = np.random.default_rng(draw)
            return Request(
                prompt=prompts.fill(self.config.plain_prompt, question=chunk.examples[row].question),
                clip=changed(chunk.clips[row], lambda clip: augment(clip, self.config.augment, rng)),
                seed=draw,
                temperature=self.config.temperature,
                top_p=self.config.rejected_top_p,
                max_new_tokens=self.config.max_new_tokens,
            )

        return chunk.sample("augmented", self.config.num_candidates, request)

    def _replayed(self, chunk: Chunk) -> list[Response]:
        """Ground truths with one segment resampled; token ids and log-probs are those of the new segment."""
        cuts: dict[int, Cut] = {}

        def request(row: int, candidate: int) -> Request:
            draw = chunk.request_seed(row, "replayed", candidate)
            parts = cuts[draw] = cut(chunk.examples[row].answer, np.random.default_rng(draw))
            return Request(
                prompt=prompts.fill(self.config.plain_prompt, question=chunk.examples[row].question),
                clip=chunk.clips[row],
                seed=draw,
                temperature=self.config.temperature,
                top_p=self.config.rejected_top_p,
                max_new_tokens=min(chunk.engine.num_tokens(parts.segment), self.config.replay_max_tokens),
                prefix=parts.before,
            )

        segments = chunk.sample("replayed", self.config.num_candidates, request)
        return [
            dataclasses.replace(r, text=cuts[r.seed].with_segment(r.text, ended=r.finish_reason == "stop")) for r in segments
        ]

    def replays(self, rounds: Sequence[tuple[Sequence[Response], Sequence[PreferencePair]]]) -> Replays:
        """The newest `replay_buffer` replayed responses of earlier rounds, and how often each was the rejected side."""
        responses: list[Response] = []
        times: collections.Counter[tuple[str, str]] = collections.Counter()
        for made, pairs in rounds:
            responses += [r for r in made if r.kind == "replayed"]
            times.update((pair.example_id, pair.rejected) for pair in pairs)
        return Replays(responses=responses[-self.config.replay_buffer :], times_drawn=times)

    def pair(self, row: DataRow, responses: Sequence[Response], evidence: Evidence) -> PreferencePair | str:
        """One pair, or the reason why there is none: cut_by_length, empty_response, or one of `why_no_preference`."""
        said = [r for r in responses if not is_cut(r) and r.text.strip()]
        unfiltered = self.config.pair_rule.endswith("_unfiltered")
        usable = said if unfiltered else [r for r in said if not math.isnan(r.trust)]
        winners = [r for r in usable if r.kind in CHOSEN]
        losers = [r for r in usable if r.kind == "augmented"]
        replayed = [r for r in responses if r.kind == "replayed" and r.text.strip() and r.trust < AGREES]
        if replayed:
            rng = np.random.default_rng(int(stable_hash([evidence.seed, row.example.id, "replay"], 8), 16))
            losers.append(draw(replayed, evidence.times_drawn, rng))
        if not winners or not losers:
            missing = CHOSEN if not winners else {"augmented", "replayed"}
            if any(r.kind in missing and math.isnan(r.trust) for r in said):
                return "trust_unclear"
            return "cut_by_length" if any(r.kind in missing and is_cut(r) for r in responses) else "empty_response"
        if self.config.pair_rule != "best_vs_worst":
            last_turn = max(r.turn for r in winners)
            chosen = min((r for r in winners if r.turn == last_turn), key=lambda r: r.candidate)
            rejected = min(losers, key=lambda r: r.candidate)
        else:
            chosen = max(winners, key=lambda r: (r.trust * math.exp(r.reward), r.turn, -r.candidate))
            known = [r for r in losers if is_known_wrong(r, row.example)] if self.config.trust is None else []
            among = known if known and chosen.trust < 1.0 else losers
            rejected = min(among, key=lambda r: (r.trust, -r.reward, r.candidate))
        gap, scorer = self.config.min_trust_gap, self.config.trust
        reason = why_no_preference(chosen, rejected, row.example, gap, scorer)
        if reason is not None and (reason == "identical_responses" or not unfiltered):
            return reason
        return build_pair(row.example, side(chosen), side(rejected), recipe=self.config.name, rule=self.config.pair_rule)

    def asked(self, rows: Sequence[DataRow]) -> list[Asked]:
        """Adds hint and reflection prompts; the latter quote an earlier response of up to `max_new_tokens` tokens."""
        plain, config, length = super().asked(rows), self.config, self.config.max_new_tokens
        examples = plain[0].examples
        hint = Asked(kind="hint", examples=examples, template=config.hint_prompt, reply=length)
        reflection = Asked(kind="reflection", examples=examples, template=config.reflect_prompt, quoted=length, reply=length)
        return [*plain, hint, *([reflection] if config.num_turns > 1 else [])]

    def describe(self) -> str:
        hints = "" if self.config.hints else ", no hints"
        config = self.config
        return f"{super().describe()}, {config.num_turns} turns{hints}, {config.negatives} negatives, {config.pair_rule}"
