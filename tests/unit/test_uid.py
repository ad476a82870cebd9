import itertools
import uuid

from hypothesis import given
from hypothesis import strategies as st

from taskq.uid import task_id_of, uid_of

ids = st.integers(0, 2**63 - 1)
installations = st.uuids()


def test_uid_is_the_same_in_every_release() -> None:
    installation = uuid.UUID("01890a5d-ac96-774b-bcce-b302099a8057")

    assert str(uid_of(7, installation)) == "b7fd7e4b-b4ae-84ab-845d-029cee09dddb"


@given(ids, installations)
def test_uid_leads_back_to_its_task(task_id: int, installation: uuid.UUID) -> None:
    uid = uid_of(task_id, installation)

    assert uid.version == 8
    assert uid.variant == uuid.RFC_4122
    assert uid == uid_of(task_id, installation)
    assert task_id_of(uid, installation) == task_id


@given(ids, installations, installations)
def test_uid_of_another_installation_leads_nowhere(task_id: int, ours: uuid.UUID, theirs: uuid.UUID) -> None:
    found = task_id_of(uid_of(task_id, theirs), ours)

    assert found == (task_id if ours == theirs else None)


@given(ids, installations, st.integers(0, 127))
def test_uid_with_one_bit_changed_leads_nowhere(task_id: int, installation: uuid.UUID, bit: int) -> None:
    changed = uuid.UUID(int=uid_of(task_id, installation).int ^ (1 << bit))

    assert task_id_of(changed, installation) is None


@given(installations, st.uuids())
def test_a_strange_uid_leads_nowhere(installation: uuid.UUID, strange: uuid.UUID) -> None:
    assert task_id_of(strange, installation) is None


def test_uids_differ_and_tell_no_order() -> None:
    installation = uuid.uuid4()

    uids = [uid_of(task_id, installation) for task_id in range(20_000)]

    assert len(set(uids)) == len(uids)
    rising = sum(first < second for first, second in itertools.pairwise(uids))
    assert abs(rising - 10_000) < 500
