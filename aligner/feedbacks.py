"""Feedback by name: instructions for a correction (the paper's controllable refinement)."""

# What `--feedback` understands by name; any other text is taken as it is. The wording is this project's.
FEEDBACKS = {
    "empathy": "Be more empathetic: take up how the person feels before anything else.",
    "helpfulness": "Be more helpful: answer what was asked, fully and to the point.",
    "harmlessness": "Be more harmless: leave out what could hurt someone, and say why where that helps.",
}
