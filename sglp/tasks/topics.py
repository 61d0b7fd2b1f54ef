"""Python's own help texts: English prose that comes with every Python, so nothing is downloaded.

The texts differ between versions of Python, and so do the results: a team that shares a cache should use one version of
Python, or a text of its own.
"""

from pydoc_data.topics import topics

TEST_EVERY = 5


class Topics:
    """A split of the help topics, one text each; every fifth topic is in the test split.

    Args:
        train: the training split if true, else the test split.
    """

    def __init__(self, train: bool):
        texts = sorted(set(topics.values()))  # some topics have two names
        self.texts = [text for i, text in enumerate(texts) if (i % TEST_EVERY == 0) != train]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> str:
        return self.texts[index]
