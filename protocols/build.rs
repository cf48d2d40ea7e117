//! Compiles `proto/*.proto` for the host-agent edge, in Rust alone.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    #[cfg(feature = "host-agent")]
    host_agent::generate()?;
    Ok(())
}

#[cfg(feature = "host-agent")]
mod host_agent {
    use std::fmt::Write;

    const FILES: [&str; 4] = ["agent.proto", "health.proto", "nacre.proto", "ttrpc.proto"];

    /// Fields of bytes, which JSON does not have.
    const BYTES: [&str; 7] = [
        ".grpc.WriteStreamRequest.data",
        ".grpc.ReadStreamResponse.data",
        ".grpc.CopyFileRequest.data",
        ".grpc.SetIPTablesRequest.data",
        ".grpc.GetIPTablesResponse.data",
        ".grpc.ReseedRandomDevRequest.data",
        ".nacre.v1.UpgradeAgentRequest.program",
    ];

    pub fn generate() -> Result<(), Box<dyn std::error::Error>> {
        let files = protox::compile(FILES, ["proto"])?;
        let mut config = prost_build::Config::new();
        if cfg!(feature = "json") {
            config.message_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]");
            // A reader leaves out what is as it would be anyway, and is told what he has misspelt.
            config.message_attribute(".", "#[serde(default, deny_unknown_fields)]");
            config.enum_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]");
            for field in BYTES {
                config.field_attribute(field, "#[serde(with = \"crate::host_agent::json::bytes\")]");
            }
        }
        config
            // Ordered, and no random seed: the agent's filter need not allow getrandom(2) for a map.
            .btree_map(["."])
            // They hold secrets: what they print is written by hand.
            .skip_debug(["nacre.v1.Credentials", "nacre.v1.ClientCertificate", "nacre.v1.Proxy"])
            .service_generator(Box::new(Rpcs))
            .compile_fds(files)?;
        Ok(())
    }

    /// One unit type a method, each an `Rpc` with its names and message types, in a module named as the service.
    struct Rpcs;

    impl prost_build::ServiceGenerator for Rpcs {
        fn generate(&mut self, service: prost_build::Service, out: &mut String) {
            let (package, name) = (&service.package, &service.proto_name);
            let module = snake_case(name);
            let mut text = format!("/// The methods of `{package}.{name}`.\npub mod {module} {{\n");
            let _ = writeln!(text, "pub const SERVICE: &str = \"{package}.{name}\";");
            let names: Vec<_> =
                service.methods.iter().map(|method| format!("\"{}\"", method.proto_name)).collect();
            let _ = writeln!(text, "pub const METHODS: &[&str] = &[{}];", names.join(", "));
            for method in &service.methods {
                let method_name = &method.proto_name;
                for line in &method.comments.leading {
                    let _ = writeln!(text, "///{line}");
                }
                let _ = writeln!(
                    text,
                    "pub struct {method_name};\n\
                     impl crate::host_agent::Rpc for {method_name} {{\n\
                     const SERVICE: &'static str = SERVICE;\n\
                     const METHOD: &'static str = \"{method_name}\";\n\
                     type Request = super::{};\n\
                     type Response = super::{};\n\
                     }}",
                    method.input_type, method.output_type
                );
            }
            if cfg!(feature = "json") {
                text.push_str(
                    "/// Has `visitor` visit the method of this name; nothing without one.\n\
                     pub fn visit<V: crate::host_agent::json::Visitor>(method: &str, visitor: V) -> Option<V::Output> {\n\
                     Some(match method {\n",
                );
                for method in &service.methods {
                    let name = &method.proto_name;
                    let _ = writeln!(text, "\"{name}\" => visitor.visit::<{name}>(),");
                }
                text.push_str("_ => return None,\n})\n}\n");
            }
            text.push_str("}\n");
            out.push_str(&text);
        }
    }

    fn snake_case(name: &str) -> String {
        let mut text = String::new();
        for letter in name.chars() {
            if letter.is_ascii_uppercase() && !text.is_empty() {
                text.push('_');
            }
            text.push(letter.to_ascii_lowercase());
        }
        text
    }
}
