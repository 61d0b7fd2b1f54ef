"""Python's own help texts: English prose that every Python holds, nothing to download.

They differ from one version of Python to the next, and with them the figures: a team that shares a cache has one
version of Python, or a text of its own.
"""

from pydoc_data.topics import topics

TEST_EVERY = 5


class Topics:
    """A split of the help topics, a text each: every fifth of them is for the test.

    Args:
        train: the training split, or else the test split.
    """

    def __init__(self, train: bool):
        texts = sorted(set(topics.values()))  # some topics have two names
        self.texts = [text for i, text in enumerate(texts) if (i % TEST_EVERY == 0) != train]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> str:
        return self.texts[index]
