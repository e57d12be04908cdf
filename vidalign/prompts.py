"""The words the policy sees. Every template is a config field; these are the defaults.

Placeholders: `{question}`, `{answer}` (the ground truth) and `{previous}` (the reply being reflected on).
Source of the three steps: LeanPO, arXiv 2506.05260 (wording is ours).
"""

PLAIN = "{question}"
HINT = "{question}\nHint: {answer}"
REFLECT = "{question}\nEarlier reply: {previous}\nIt can be improved. Align it with: {answer}"


def fill(template: str, *, question: str, answer: str = "", previous: str = "") -> str:
    """Fill a template by plain replacement, so that braces in a question are left alone."""
    text = template.replace("{question}", "\0q").replace("{answer}", "\0a").replace("{previous}", "\0p")
    return text.replace("\0q", question).replace("\0a", answer).replace("\0p", previous)


def chat(text: str) -> list[dict]:
    """The chat messages of one video turn, as `apply_chat_template` of a Hugging Face processor takes them."""
    return [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}]
