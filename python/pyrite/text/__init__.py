"""Text in, token ids out, and back: tokenizer, incremental detokenizer, chat templates.

`tokenizers` and `jinja2` are imported when first used, not with this package.
"""

from pyrite.text.chat_template import ChatTemplate
from pyrite.text.detokenize import IncrementalDetokenizer
from pyrite.text.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "IncrementalDetokenizer", "Tokenizer"]
