//! The `dr` command.

fn main() -> std::process::ExitCode {
    dr_cli::main()
}
