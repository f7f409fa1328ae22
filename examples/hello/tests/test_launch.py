from hello import countdown


def test_counts_down_to_lift_off():
    seen = []
    print()
    for number in countdown(5):
        print(f"  {number} …", flush=True)
        seen.append(number)
    print("  lift-off")
    assert seen == [5, 4, 3, 2, 1]
