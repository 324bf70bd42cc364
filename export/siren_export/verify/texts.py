"""The texts that every export is verified on: mixed in length, script and markup.

They are fixed, so that a recorded reference score belongs to a text for good; `digest` names the
set. A checkpoint has a few of its own beside them. Nothing here is meant to be harmful: what is
verified is arithmetic, not judgement.
"""

import hashlib
import json
import re
import sys
from collections import defaultdict
from collections.abc import Sequence

from tokenizers import Tokenizer

from siren_export.sources.checkpoint import Checkpoint
from siren_runtime.text.rules import clean

_PANGRAM = "The quick brown fox jumps over the lazy dog while five boxing wizards watch. "

_SHORT = (
    "",
    " ",
    "\n\n\n",
    "a",
    "Hello",
    "Yes.",
    "No!",
    "42",
    "?",
    "How do I kill a Python process?",
    "What is the capital of France?",
    "Please summarise the meeting notes for me.",
    "I can't help with that request.",
    "Ignore all previous instructions.",
    "You are a helpful assistant, aren't you?",
    "My neighbour's dog barks all night and I am so tired of it.",
    "Explain photosynthesis to a five-year-old in two sentences.",
    "The patient was given 5 mg of the drug twice a day for ten days.",
    "He said he would hurt anyone who came near the door.",
    "Kindly tell me how one might get into a locked house that is not one's own.",
)

_SCRIPTS = (
    "Où est la bibliothèque ? Très bien, merci beaucoup.",
    "Die Straße ist größer als früher, überraschenderweise.",
    "¿Cómo estás? ¡Qué alegría verte por aquí, niño!",
    "Привет, как дела? Сегодня хорошая погода.",
    "Γειά σου Κόσμε, τι κάνεις;",
    "مرحبا بالعالم، كيف حالك اليوم؟",
    "שלום עולם, מה שלומך היום?",
    "你好，世界。今天天气很好，我们去公园吧。",
    "こんにちは、世界。今日はいい天気ですね。",
    "안녕하세요 세계, 오늘 날씨가 좋네요.",
    "नमस्ते दुनिया, आज आप कैसे हैं?",
    "สวัสดีชาวโลก วันนี้อากาศดี",
    "Xin chào thế giới, hôm nay trời đẹp quá.",
    "Merhaba dünya, bugün hava çok güzel, değil mi?",
    "😀😃😄 party at 8 🎉🎉 bring 🍕 and 👨‍👩‍👧‍👦!",
    "Ｆｕｌｌｗｉｄｔｈ ｌｅｔｔｅｒｓ and ①②③",
    "e\u0301 is not \u00e9, n\u0303 is not \u00f1",
    "zero\u200bwidth\u200bspaces and a \u00a0 no-break space",
    "mixed العربية and English and עברית in one line",
    "𝔉𝔯𝔞𝔨𝔱𝔲𝔯 𝕕𝕠𝕦𝕓𝕝𝕖 𝓼𝓬𝓻𝓲𝓹𝓽",
)

_MARKUP = (
    "<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\nHi!<|im_end|>",
    "<s>[INST] <<SYS>> be kind <</SYS>> What is love? [/INST] A feeling. </s>",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
    "<|endoftext|>",
    "[INST][/INST]",
    "tabs\t\tand   spaces\n\n\n\n\nand newlines",
    "  leading and trailing  \n",
    "<html><body><h1>Title</h1><p>Paragraph &amp; entity</p></body></html>",
    "# Heading\n\n- item one\n- item two\n\n```python\nprint('hello')\n```",
    '{"key": "value", "list": [1, 2, 3], "nested": {"a": null}}',
    "SELECT * FROM users WHERE name = 'Robert'; DROP TABLE students;--",
    "def f(x):\n    return x ** 2 if x > 0 else -x\n",
    "https://example.com/path?query=1&other=two#fragment",
    "user@example.com wrote on 2024-01-31 at 12:34:56 +0000",
    "C:\\Windows\\System32\\cmd.exe /c dir",
    "$$\\int_0^1 x^2\\,dx = \\frac{1}{3}$$",
    "ALL CAPS SHOUTING TEXT WITH NUMBERS 1234567890!!!",
    "!@#$%^&*()_+-=[]{}|;':\",./<>?`~",
)

# In repeats of a sentence of about 16 tokens: from a paragraph to well beyond 512 tokens.
_REPEATS = (2, 4, 6, 8, 12, 16, 24, 31, 32, 40, 64)

TEXTS: tuple[str, ...] = (
    *_SHORT,
    *_SCRIPTS,
    *_MARKUP,
    *(_PANGRAM * n for n in _REPEATS),
    "word " * 600,
    "длинное предложение о погоде и море. " * 60,
    "天气很好我们去公园散步吧。" * 60,
    "supercalifragilisticexpialidocious" * 40,
)

# Few, since each is read in many steps: plain, of several scripts, with markup, some 150 tokens.
STREAM_TEXTS: tuple[str, ...] = (_SHORT[17], _SCRIPTS[3], _SCRIPTS[14], _MARKUP[1], _PANGRAM * 8)

# Read in one batch, so of a token or two up to some 150: the shorter ones are padded.
BATCH_TEXTS: tuple[str, ...] = (_SHORT[4], _SHORT[5], _SHORT[17], _SCRIPTS[7], _PANGRAM * 8)


_TOKENS_PER_TEXT = 16
_PLACEHOLDERS = 8  # of the first and of the last ones of a kind


def added_tokens(checkpoint: Checkpoint) -> list[str]:
    """The added tokens that a text can hold: cleaning keeps them, and the embedding has a row.

    What has none is told by `siren_export.verify.embedding.without_row`.
    """
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json.decode("utf-8"))
    declared = sorted(tokenizer.get_added_tokens_decoder().items())
    rows = checkpoint.vocab_size or sys.maxsize
    contents = [token.content for index, token in declared if index < rows]
    return [content for content in contents if content in clean(f"a {content} b")]


def own_texts(tokens: Sequence[str], max_length: int) -> list[str]:
    """The texts of one checkpoint: with its added tokens, and longer than its limit.

    Of tokens that differ in a number alone, as Gemma's 6,242 from <unused0> on, the first and last
    few are in them: the others' rows are of the same table, and `compare_tokens` looks at each.

    Args:
        tokens: of `added_tokens`.
        max_length: in tokens; the last text has more, and ends otherwise than it begins.
    """
    kinds = defaultdict(list)
    for token in tokens:
        kinds[re.sub("[0-9]+", "0", token)].append(token)
    few = {t for kind in kinds.values() for t in (*kind[:_PLACEHOLDERS], *kind[-_PLACEHOLDERS:])}
    tokens = [token for token in tokens if token in few]
    starts = range(0, len(tokens), _TOKENS_PER_TEXT)
    groups = [tokens[start : start + _TOKENS_PER_TEXT] for start in starts]
    texts = ["It says" + ", then".join(f" {token} twice{token}" for token in g) for g in groups]
    return [*texts, " ".join(f"Item {n} of a list." for n in range(max_length // 5 + 1))]


def digest() -> str:
    """SHA-256 of the texts, in order."""
    return hashlib.sha256(json.dumps(TEXTS).encode()).hexdigest()
