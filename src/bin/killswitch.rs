//! The command that users run: see `killswitch --help`.

fn main() -> std::process::ExitCode {
    killswitch::cli::main()
}
