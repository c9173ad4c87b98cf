from segrl.grading.units import Unit, unit_of


def test_what_units_measure():
    metre, second = unit_of([("m", 1)]), unit_of([("s", 1)])
    assert metre == Unit((("length", 1),)) == unit_of([("metres", 1)])
    assert unit_of([("km", 1), ("h", -1)]).dimensions == unit_of([("mph", 1)]).dimensions
    assert unit_of([("km", 1), ("h", -1)]).size == unit_of([("m", 1), ("s", -1)]).size * 5 / 18
    assert unit_of([("square", 1), ("feet", 1)]) == unit_of([("ft", 2)])
    assert unit_of([("L", 1)]).size == unit_of([("cm", 3)]).size * 1000
    assert metre.dimensions != second.dimensions
    assert unit_of([("units", 1)]) == Unit()
    assert unit_of([("apples", 1)]) == unit_of([("apple", 1)]) != unit_of([("pears", 1)])
