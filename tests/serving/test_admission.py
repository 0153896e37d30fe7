"""How many requests are taken on, of all clients and of one."""

import pytest

from service.errors import ClientFull, ServiceFull
from service.serving.inference import Admission


def test_place_is_free_again_when_its_request_leaves():
    admission = Admission(2)
    admission.enter(1, "a")
    admission.enter(2, "b")
    with pytest.raises(ServiceFull, match="2 requests are under way"):
        admission.enter(3, "c")
    for request in (1, 1, 3):  # of which the last was refused
        admission.leave(request)
    admission.enter(3, "c")
    with pytest.raises(ServiceFull):
        admission.enter(4, "c")


def test_client_leaves_places_for_others():
    admission = Admission(4)
    for request in range(3):
        admission.enter(request, "a")
    with pytest.raises(ClientFull, match="3 of this client's requests"):
        admission.enter(3, "a")
    admission.enter(3, "b")
    admission.leave(0)
    admission.enter(4, "a")
