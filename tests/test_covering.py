"""What `covering` leaves to the plain tests still holds every value."""

from itertools import product

from covering import covering


def test_each_value_of_each_axis_is_plain_once():
    cases = list(product("abcd", range(3), ([], {})))
    found = covering(cases)
    assert [one.values for one in found] == cases
    plain = [one.values for one in found if not one.marks]
    assert len(plain) == 4
    assert [{repr(case[axis]) for case in plain} for axis in range(3)] == [
        {repr(case[axis]) for case in cases} for axis in range(3)
    ]
    # further values of a case are no axis
    assert sum(not one.marks for one in covering([(1, "x"), (1, "y")], axes=1)) == 1
