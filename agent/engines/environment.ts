// The environment of work, as far as all who start work agree on it. Pure; features import it, engines need not.

/**
 * Variables that make a program load or run something else: the policy says which programs run, so neither a pipeline nor
 * a deployment may turn one into another. No list is complete; a program that obeys further ones is fenced by the `env`
 * that the configuration gives it, which wins over a command's.
 */
const STEERING = new RegExp(
  `^(${[
    // the loader, the shell, the C library
    "LD_.*|DYLD_.*|PATH|HOME|TMPDIR|SHELL|ENV|BASH_.*|ZDOTDIR|IFS|PS4|SHELLOPTS|PROMPT_COMMAND|GCONV_PATH|GLIBC_.*|MALLOC_.*|LOCPATH|NLSPATH|HOSTALIASES|RES_OPTIONS",
    // languages: start-up files, search paths, options
    "NODE_.*|NPM_.*|DENO_.*|BUN_.*|PYTHON.*|PIP_.*|UV_.*|CONDA_.*|PERL.*|RUBY.*|GEM_.*|BUNDLE_.*|JAVA_.*|_JAVA_.*|JDK_.*|CLASSPATH|MAVEN_.*|GRADLE_.*|SPARK_.*|HADOOP_.*",
    "DOTNET_.*|CORECLR_.*|COR_.*|JULIA_.*|LUA_.*|R_.*|PHP.*|TCL.*|ERL_.*|OCAML.*|GUILE_.*|GO[A-Z]*FLAGS|GOPATH|CARGO_.*|RUSTC.*|MAKEFLAGS",
    // libraries that load what a variable names
    "OMP_TOOL.*|CUDA_INJECTION.*|MPL.*|KERAS_.*|TORCH_EXTENSIONS_DIR|GTK_.*|QT_.*|VK_.*|LIBGL_.*|XDG_.*",
    // configuration files that can name a program to run, or where traffic goes
    "KUBECONFIG|AWS_(CONFIG|SHARED_CREDENTIALS)_FILE|AWS_ENDPOINT.*|BOTO_CONFIG|GOOGLE_APPLICATION_CREDENTIALS|CLOUDSDK_.*|GIT_.*|SSH_.*|[A-Z]*_PROXY|SSL_CERT_.*|OPENSSL_.*|CURL_.*|REQUESTS_CA_BUNDLE",
    "EDITOR|VISUAL|PAGER|MANPAGER|LESSOPEN|LESSCLOSE|LESSKEY|BROWSER|SALLYPORT_.*",
  ].join("|")})$`,
);

/** True for a variable that a command may not set. */
export const steersProgram = (variable: string): boolean => STEERING.test(variable);

/** What a program of this machine gets beside; an image has its own. */
export const HOST_ENVIRONMENT = { PATH: "/usr/local/bin:/usr/bin:/bin", LANG: "C.UTF-8" } as const;
