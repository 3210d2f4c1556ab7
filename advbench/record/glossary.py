"""What each flag means, how severe it can be, and what to do: `advbench list flags`. A test holds it against the code.

A flag that is raised by fewer than four images (two for found-by-labels) is a note, whatever the share.
"""

from __future__ import annotations

from typing import NamedTuple

SEVERITIES = {
    "note": "a fact; it changes nothing",
    "suspect": "the number may be too high: the attacks may have failed for another reason than robustness",
    "broken": "the number is too high, or means nothing",
}
BLACK_BOX_AHEAD = "NAME-wins"  # NAME is an attack's, such as square


class Meaning(NamedTuple):
    """`severity`: which ones it can have, and from which share of the images on."""

    severity: str
    meaning: str
    action: str


_GRADIENTS = "note; suspect above 10 % of the images, broken from 90 %"
_LONGER = "nothing; it takes longer"

GROUPS: dict[str, dict[str, Meaning]] = {
    "The model and the images": {
        "at-chance": Meaning(
            "suspect",
            "on these images the model is no better than guessing",
            "look at normalisation (--mean, --std), scale (0-1 or 0-255), class order and labels",
        ),
        "class-order": Meaning(
            "suspect",
            "the model would be right on half of the images or more, a tenth more than now, if its classes had another "
            "order",
            "put the classes into the dataset's order",
        ),
        "constant": Meaning(
            "broken",
            "it gives one answer to 99 % of the images or more",
            "as for at-chance; if the weights are right, the model did not learn",
        ),
        "published": Meaning(
            "suspect",
            "a RobustBench model's clean accuracy is over 2 points from the published one",
            "check that data, normalisation and weights are the published ones",
        ),
        "abstain": Meaning(
            "note",
            "the model may reject an input (--abstain last): how many clean images it rejects, which count as wrong",
            "compare it with models that may reject too",
        ),
        "outside": Meaning("broken", "images reach beyond [0, 1]", "scale the images"),
        "few-classes": Meaning(
            "note", "fewer than four classes: the margin loss replaces DLR, which needs four", "nothing"
        ),
        "small-n": Meaning(
            "note", "fewer than 1,000 images: the intervals are wide", "use more images before comparing"
        ),
        "train-mode": Meaning(
            "note; suspect if the model stays in train mode",
            "the model came in train mode and was put into eval mode",
            "call eval(); a model that stays in train mode may depend on the batch",
        ),
        "model": Meaning(
            "note", "where the weights come from: an unfinished training, a pickle, another precision, ...", "read it"
        ),
        "catastrophic-overfitting": Meaning(
            "suspect; note if the deployed epoch is not collapsed itself",
            "in training, robustness to PGD collapsed while that to FGSM did not",
            "train with more steps, or deploy the epoch before the collapse",
        ),
    },
    "The outputs and the gradients": {
        "non-finite": Meaning(
            "broken", "NaN or infinite logits on clean images; they count as wrong", "repair the model"
        ),
        "non-finite-attacked": Meaning(
            "broken",
            "NaN or infinite logits on attacked images; they count as wrong",
            "repair the model: such hits show an overflow, not a weakness",
        ),
        "random": Meaning(
            "suspect",
            "two passes over the same images differ; the mean of 20 passes decides",
            "turn off dropout and noise, or attack the mean (autoattack-rand)",
        ),
        "batch": Meaning(
            "note; suspect if logits differ by over 1 % of their range, or two verdicts change",
            "an image's logits depend on the rest of its batch",
            "use eval mode, and statistics that do not come from the batch",
        ),
        "probabilities": Meaning(
            "suspect",
            "the outputs are probabilities, in which gradients vanish",
            "return logits, without the softmax",
        ),
        "clipped": Meaning(
            "note",
            "over 2 % of the logits have exactly the same largest or smallest value: a ReLU, clamp or sigmoid is last",
            "attack the logits before it",
        ),
        "zero-gradient": Meaning(
            _GRADIENTS,
            "the gradient is zero on some images: attacks that follow it do not move",
            "find what cuts it (rounding, detach, saturation), and attack without it, or straight through it",
        ),
        "saturated": Meaning(
            _GRADIENTS,
            "logits are so large that the gradient of the cross-entropy underflows",
            "use an attack whose loss does not mind the scale (apgd-dlr, apgd-t), or divide the logits",
        ),
        "nan-gradient": Meaning(_GRADIENTS, "NaN or infinite gradients", "repair the backward pass"),
        "rounding": Meaning(
            _GRADIENTS,
            "the logits are so large that the margin between them is lost in rounding",
            "subtract the offset, or divide the logits",
        ),
        "memorised": Meaning(
            "suspect above 10 % of the images, broken from 50 %",
            "correctly classified images become wrong after noise of half a step of the pixels' scale",
            "find out whether the model knows the test images",
        ),
        "discontinuous": Meaning(
            "note above 2 % of the images, suspect above 25 %, broken from 50 %; a black box: a note",
            "the logits jump right beside the images",
            "find out whether the model knows the test images, or rounds its input",
        ),
    },
    "The attacks": {
        BLACK_BOX_AHEAD: Meaning(
            "note above 0.2 % of the images; suspect above 10 %, or above 2 % with a flag about gradients beside it",
            "the black-box attack NAME alone felled many images: gradients may mislead the others",
            "as a note, nothing; else believe no attack by gradients on this model, and attack what hides them",
        ),
        "weak-attack": Meaning(
            "note above 2 % of the images, suspect above 10 %",
            "plain PGD-100 fells what the evaluated attacks left standing",
            "evaluate with AutoAttack",
        ),
        "more-steps": Meaning(
            "note above 10 % of the images, suspect above 25 %, broken from 90 %",
            "PGD-100 fells many more images than PGD-20",
            "give the attack more steps",
        ),
        "loss-not-rising": Meaning(
            "note above 2 % of the images, suspect above 20 %, broken from 90 %",
            "PGD brings images no nearer to failure: the gradient points elsewhere",
            "look for a false or shattered gradient",
        ),
        "noise-wins": Meaning(
            "note; suspect above 2 % of the images, broken from 50 %",
            "random noise fells images that stand under the attacks",
            "the attacks have failed; look at the gradient flags",
        ),
        "above-chance": Meaning(
            "suspect",
            "PGD at Linf eps 0.5, where every image can be made grey, leaves more than chance: it is misled",
            "look for a false gradient",
        ),
        "straight-through": Meaning(
            "note above 2 % of the images, suspect above 5 %, broken from 90 %; a note if the attacks use them",
            "gradients through a declared rounding fell more images than plain ones",
            "set straight_through=true",
        ),
        "found-by-labels": Meaning(
            "note; suspect above 2 % of the images",
            "RayS, which reads answers only, fells what the evaluated attacks left standing; not looked for under "
            "attacks that make few passes",
            "the logits mislead (a decoy), or the attacks were few black-box queries: attack the net beneath, or with "
            "more queries",
        ),
        "found-from-units": Meaning(
            "note; suspect above 5 % of the images",
            "attacks that start where a hidden unit wakes fell what the others left",
            "a plateau hides gradients: add starts of this kind",
        ),
        "found-from-outputs": Meaning(
            "note; suspect above 5 % of the images",
            "attacks that start where the outputs differ most (output-diversified) fell what the others left",
            "use more restarts, and starts of this kind",
        ),
        "unverified": Meaning(
            "note; suspect from 1 % of the images left with refused hits alone",
            "the model itself refused hits of the faster copy on which attacks search",
            "evaluate with --precision fp32",
        ),
        "outside-ball": Meaning(
            "note; suspect where most points did and no other attack ran",
            "points of an attack of your own lay outside of the ball and were ignored",
            "project its points: at most eps from the image, and in [0, 1]",
        ),
        "not-repeatable": Meaning(
            "note",
            "one batch, attacked again by an attack of your own or of another library with the same seed, had other "
            "verdicts, or was not repeated",
            "draw its random numbers from the global generators, which are seeded for each batch, or read the number "
            "as one draw",
        ),
        "not-probed": Meaning(
            "suspect",
            "--probes off: none of the flags that need passes of their own was looked for",
            "evaluate without it before you quote the number",
        ),
        "escalated": Meaning(
            "note",
            "the set quick was not enough for this model, so all of AutoAttack followed; the reasons stand beside it",
            "nothing; it takes longer, and what stands withstood both sets",
        ),
        "external": Meaning(
            "note",
            "adversarial images made elsewhere (--adversarials, leaderboard add), each verified by the model, lower "
            "the number below what the attacks found",
            "nothing; where they are many, the attacks are weak on this model",
        ),
        "not-certified": Meaning(
            "note",
            "--certify proved nothing, because there are no bounds for the model; the layer is named",
            "nothing; the number is an upper bound as without --certify",
        ),
        "spectrum": Meaning(
            "note", "how clipping to [0, 1] changed the spectrum of Fourier perturbations", "read it beside the number"
        ),
        "band-leak": Meaning(
            "note", "how much of the perturbations lies outside of an attack's band", "read it beside the number"
        ),
        "corruptions": Meaning(
            "note", "where the corrupted images come from", "compare only with numbers from the same images"
        ),
    },
    "The machine": {
        "other-noise": Meaning(
            "note",
            "a random model was evaluated in several processes or resumed: its noise is another draw than in one run",
            "nothing; repeat it in one run to compare with one",
        ),
        "slots": Meaning("note", "the memory was too small, so the passes were made smaller", "nothing"),
        "search-copy": Meaning("note", "the faster copy of the model fails, so the model itself is searched", _LONGER),
        "eager": Meaning("note", "steps did not run as CUDA graphs, or not as compiled code", _LONGER),
    },
}
GLOSSARY: dict[str, Meaning] = {name: one for group in GROUPS.values() for name, one in group.items()}
FLAG_NAMES = tuple(sorted(name for name in GLOSSARY if name != BLACK_BOX_AHEAD))
