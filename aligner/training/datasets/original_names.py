"""The data set names of the authors' code that are not registered here: what stands in their place, and why.

Source: Aligner2024/Aligner, aligner/training/datasets/raw/ at 61f4f1e (its registry; aliases included).
"""

from __future__ import annotations

HH = "the same pairs; one part of them: its file's path behind 'hh-rlhf::'"
PRIVATE = "its rows lie at a path of the authors' machines and are not published"
BEAVERTAILS = "it copies an answer: the identity warm-up (--identity_proportion) does that with your own rows"
MOSS = "its rows are a form of their own: write them as 'messages' or 'sharegpt' and give the file"

# name: (what to write instead, '' where there is nothing; the reason)
INSTEAD = {
    "stanford-alpaca": ("alpaca", "another name of the same"),
    "alpaca-json": ("alpaca::PATH", "another name of the same"),
    "moss-002-sft": ("", MOSS),
    "moss-003-sft": ("", MOSS),
    "beavertails-json/train": ("", BEAVERTAILS),
    "beavertails-json/test": ("", BEAVERTAILS),
    "PKU-SafeRLHF/train": ("pku-saferlhf", "another name of the same"),
    "PKU-SafeRLHF/test": ("pku-saferlhf::hub:/test", "a split of the same"),
    "PKU-SafeRLHF-30K/train": ("pku-saferlhf::hub:PKU-Alignment/PKU-SafeRLHF-30K", "another copy"),
    "PKU-SafeRLHF-30K/test": ("pku-saferlhf::hub:PKU-Alignment/PKU-SafeRLHF-30K/test", "another copy"),
    "PKU-SafeRLHF-10K/train": ("pku-saferlhf::hub:PKU-Alignment/PKU-SafeRLHF-10K", "another copy"),
    "hh-rlhf-dialogue": ("hh-rlhf", "the same pairs; a prompt without {answer} learns the chosen answer alone"),
    "hh-rlhf-preference": ("hh-rlhf", "the same pairs"),
    "TreeRLHFFULL/train": ("", PRIVATE),
    "TreeRLHFALL/train": ("", PRIVATE),
    "TreeRLHF/test": ("", PRIVATE),
    "TreeRLHFPPO/test": ("", PRIVATE),
    "Baichuan3RM/train": ("", PRIVATE),
    "Baichuan3RM/test": ("", PRIVATE),
}
# Names of the original that are parts or aliases of the two of HH-RLHF.
HH_PARTS = (
    "hh-dialogue",
    "hh-preference",
    "hh-rlhf-harmless-",
    "hh-rlhf-helpful-",
    "hh-harmless-",
    "hh-helpful-",
    "hh-rlhf-dialogue/",
    "hh-rlhf-preference/",
)


def instead_of(name: str) -> str | None:
    """What to write for a name of the original, in one sentence; None where it is none of them."""
    known = INSTEAD.get(name.removeprefix("PKU-Alignment/"))
    if known is None and name.startswith(HH_PARTS):
        known = ("hh-rlhf", HH)
    if known is None:
        return None
    spec, reason = known
    return f"write {spec} ({reason})" if spec else f"it is not here: {reason}"
