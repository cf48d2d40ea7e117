//! URLs of redirects and token endpoints: nothing in them can break a request apart.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_puller::registry::url::Url;

fuzz_target!(|text: &str| {
    let base = Url::parse("https://registry.example:5000/v2/a/blobs/b?c").expect("a valid URL");
    for url in [Url::parse(text), base.resolve(text)].into_iter().flatten() {
        assert!(url.target.starts_with('/') && url.target.bytes().all(|byte| byte.is_ascii_graphic()));
        assert!(!url.origin.host.is_empty() && url.origin.port != 0);
        let again = Url::parse(&format!("{}://{}{}", scheme(&url), url.origin.authority(), url.target));
        assert_eq!(again, Ok(url));
    }
});

fn scheme(url: &Url) -> &'static str {
    match url.origin.scheme {
        nacre_puller::registry::url::Scheme::Http => "http",
        nacre_puller::registry::url::Scheme::Https => "https",
    }
}
