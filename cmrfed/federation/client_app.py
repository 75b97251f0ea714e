"""The ClientApp of a site: the same object in one process, under Ray and over a network.

Flower starts a process for each message, so what a message needs is loaded when it comes: only training loads torch.
"""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from cmrfed.core.processes import loading
from cmrfed.federation.flower import check_version
from cmrfed.federation.site.answers import answer_hello, answer_step

if TYPE_CHECKING:
    from cmrfed.training.subspace import LastDirections


def on_tested_flower(message: Message, context: Context, answer: Callable[[Message, Context], Message]) -> Message:
    """Answer nothing on a release of Flower that was not tested: a mod, which runs before every handler."""
    check_version()
    return answer(message, context)


app = ClientApp(mods=[on_tested_flower])


@cache
def _directions() -> "LastDirections":
    """Shared by the simulated sites of this process, which ask for the same one after another; no patient is in it."""
    from cmrfed.training.subspace import LastDirections

    return LastDirections()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one round."""
    with loading():
        from cmrfed.federation.site.site import answer_train

    return Message(answer_train(context, message.content, _directions()), reply_to=message)


@app.train("shares")
def share(message: Message, context: Context) -> Message:
    """Share out the secrets of a secure sum."""
    return Message(answer_step(context, message.content, "shares"), reply_to=message)


@app.train("masked")
def mask(message: Message, context: Context) -> Message:
    """Send the masked update of a secure sum."""
    return Message(answer_step(context, message.content, "masked"), reply_to=message)


@app.train("unmask")
def unmask(message: Message, context: Context) -> Message:
    """Give the shares that take masks out of a secure sum."""
    return Message(answer_step(context, message.content, "unmask"), reply_to=message)


@app.query()
def hello(message: Message, context: Context) -> Message:
    """Say who this is."""
    return Message(answer_hello(context), reply_to=message)
