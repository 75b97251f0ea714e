"""The ClientApp of a site: the same object in one process, under Ray and over a network."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from cmrfed.federation.site import answer_hello, answer_train

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one round."""
    return Message(answer_train(context, message.content), reply_to=message)


@app.query()
def hello(message: Message, context: Context) -> Message:
    """Say who this is."""
    return Message(answer_hello(context), reply_to=message)
