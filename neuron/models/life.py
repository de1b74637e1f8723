"""The life of a model, as a table: what happens to it in which state, what it is then, and what is done."""

from __future__ import annotations

from enum import Enum

from ipc.messages.state import ModelStatus


class Event(Enum):
    """What can happen to a model."""

    WANTED = "somebody asks for it: a request, a load, its pin"
    GRANTED = "its memory is booked"
    SHORT = "its device has less memory than was booked"
    READY = "all its ranks are ready"
    REFUSED = "there is no memory for it now"
    FAILED = "it cannot be loaded, or not even read"
    DIED = "its workers died"
    LEAVE = "it shall end: an unload, or room for another model"
    STAY = "it need not end after all"
    QUIET = "nothing is in its worker any more"
    GONE = "its processes are gone"
    DESERTED = "nobody waits for it any more"


# A state and what happens in it -> the state that follows, and what is done, a method of `ManagedModel`. What
# has no line changes nothing: a model that loads is wanted already, and one that ends need not be told to.
TRANSITIONS: dict[ModelStatus, dict[Event, tuple[ModelStatus, str]]] = {
    "unloaded": {
        Event.WANTED: ("waiting", "wish"),
        Event.FAILED: ("failed", "give_up"),
        Event.LEAVE: ("unloaded", "rest"),
    },
    "waiting": {  # for memory
        Event.GRANTED: ("loading", "tell_load"),
        Event.REFUSED: ("unloaded", "give_up"),
        Event.FAILED: ("failed", "give_up"),
        Event.LEAVE: ("unloading", "cancel"),
        Event.DESERTED: ("unloading", "cancel"),
    },
    "loading": {
        Event.READY: ("ready", "serve"),
        Event.SHORT: ("waiting", "tell_load"),
        Event.REFUSED: ("unloaded", "give_up"),
        Event.FAILED: ("failed", "give_up"),
        Event.LEAVE: ("unloading", "cancel"),
    },
    "ready": {
        Event.DIED: ("restarting", "restart"),
        Event.LEAVE: ("draining", "finish"),
    },
    "draining": {  # what runs in it ends, the rest waits
        Event.DIED: ("unloading", "lose_and_end"),
        Event.STAY: ("ready", "serve"),
        Event.QUIET: ("unloading", "end"),
    },
    "restarting": {
        Event.READY: ("ready", "serve"),
        Event.FAILED: ("failed", "give_up"),
        Event.LEAVE: ("unloading", "cancel"),
    },
    "unloading": {
        Event.GONE: ("unloaded", "rest"),
    },
    "failed": {
        Event.WANTED: ("waiting", "wish"),
        Event.LEAVE: ("unloaded", "rest"),
    },
}
