use super::*;

#[test]
fn only_names_of_slots_get_into_commands() {
    let longest = "a".repeat(63);
    for good in ["dr", "a", "dr_standby_2", longest.as_str()] {
        assert!(check_slot(good).is_ok(), "{good}");
    }
    let too_long = "a".repeat(64);
    for bad in ["", "Dr", "a-b", "a\"b", "a b", "ä", "a;", too_long.as_str()] {
        assert!(
            matches!(check_slot(bad), Err(ReplicationError::Name { .. })),
            "{bad:?} was accepted"
        );
    }
}
