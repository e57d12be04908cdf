"""The words the policy sees. Every template is a config field; these are the defaults.

Placeholders: `{question}`, `{answer}` (the ground truth) and `{previous}` (the reply that is worked on).
Sources of the steps (the wording is ours): LeanPO, arXiv 2506.05260, for hint and reflection; RRPO, arXiv 2504.12083, for
differences and rewrite; LLaVA-Hound, arXiv 2404.01258, for the caption.
"""

PLAIN = "{question}"
HINT = "{question}\nHint: {answer}"
REFLECT = "{question}\nEarlier reply: {previous}\nIt can be improved. Align it with: {answer}"

DIFFERENCES = (
    "{question}\nRight answer: {answer}\nWrong answer: {previous}\nList what the wrong answer gets wrong (objects, actions, "
    "attributes, places, times), one a line, as: phrase of the right answer => phrase of the wrong answer"
)
REWRITE = "{question}\nRight answer: {answer}\nRewrite the right answer. Swap in these phrases and change nothing else:\n{previous}"
CAPTION = "Describe the video in detail: every object, its colour and shape, how it moves, and the order of events."

PLACEHOLDERS = {
    "plain_prompt": ("{question}",),
    "hint_prompt": ("{question}", "{answer}"),
    "reflect_prompt": ("{question}", "{answer}", "{previous}"),
    "differences_prompt": ("{answer}", "{previous}"),
    "rewrite_prompt": ("{answer}", "{previous}"),
}


def fill(template: str, *, question: str, answer: str = "", previous: str = "") -> str:
    """Fill a template by plain replacement, so that braces in a question are left alone."""
    text = template.replace("{question}", "\0q").replace("{answer}", "\0a").replace("{previous}", "\0p")
    return text.replace("\0q", question).replace("\0a", answer).replace("\0p", previous)


def chat(text: str) -> list[dict]:
    """The chat messages of one video turn, as `apply_chat_template` of a Hugging Face processor takes them."""
    return [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}]
