// java.net.http.HttpClient through balancer: java Client.java SECURE PLAIN CA

import java.io.ByteArrayInputStream;
import java.io.InputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpClient.Version;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyStore;
import java.security.MessageDigest;
import java.security.cert.CertificateFactory;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.concurrent.CompletableFuture;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

public class Client {
    static final int SIZE = 3_000_000;

    static SSLContext trusting(String file) throws Exception {
        KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null, null);
        try (InputStream pem = Files.newInputStream(Path.of(file))) {
            store.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(pem));
        }
        TrustManagerFactory managers = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        managers.init(store);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, managers.getTrustManagers(), null);
        return context;
    }

    static String digest(byte[] bytes) throws Exception {
        return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(bytes));
    }

    static void check(Object found, Object wanted) {
        if (!found.equals(wanted)) {
            throw new AssertionError(found + " instead of " + wanted);
        }
    }

    static HttpRequest.Builder request(String front, String path) {
        return HttpRequest.newBuilder(URI.create(front + path)).timeout(Duration.ofSeconds(30));
    }

    static void tryOut(SSLContext context, String front, Version asked, Version spoken) throws Exception {
        HttpClient client = HttpClient.newBuilder().version(asked).sslContext(context).build();
        String large = "/bytes/" + SIZE;
        HttpResponse<byte[]> got = client.send(request(front, large).build(), BodyHandlers.ofByteArray());
        check(got.version(), spoken);
        check(digest(got.body()), got.headers().firstValue("x-sha256").orElseThrow());
        HttpRequest head = request(front, large).method("HEAD", BodyPublishers.noBody()).build();
        HttpResponse<Void> answered = client.send(head, BodyHandlers.discarding());
        check(answered.headers().firstValue("content-length").orElseThrow(), Integer.toString(SIZE));
        byte[] body = new byte[SIZE];
        Arrays.fill(body, (byte) 'b');
        HttpRequest.BodyPublisher[] forms = {
            BodyPublishers.ofByteArray(body),
            BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(body)),
        };
        for (HttpRequest.BodyPublisher form : forms) {
            for (boolean expects : new boolean[] {false, true}) {
                HttpRequest post = request(front, "/sha256").expectContinue(expects).POST(form).build();
                HttpResponse<String> sent = client.send(post, BodyHandlers.ofString());
                check(sent.version(), spoken);
                check(sent.body(), digest(body));
            }
        }
        HttpResponse<byte[]> chunks = client.send(request(front, "/chunks/" + SIZE).build(), BodyHandlers.ofByteArray());
        check(chunks.body().length, SIZE);
        var together = new ArrayList<CompletableFuture<HttpResponse<String>>>();
        for (int number = 0; number < 8; number++) {
            together.add(client.sendAsync(request(front, "/together").build(), BodyHandlers.ofString()));
        }
        for (var answer : together) {
            check(answer.get().body(), "together");
        }
        System.out.println("Java " + Runtime.version() + ": " + spoken + " to " + front + ", asked for " + asked);
    }

    public static void main(String[] arguments) throws Exception {
        SSLContext context = trusting(arguments[2]);
        tryOut(context, arguments[0], Version.HTTP_1_1, Version.HTTP_1_1);
        tryOut(context, arguments[0], Version.HTTP_2, Version.HTTP_2);
        tryOut(context, arguments[1], Version.HTTP_1_1, Version.HTTP_1_1);
        // It asks for an upgrade to h2c, which is obsolete, and goes on without.
        tryOut(context, arguments[1], Version.HTTP_2, Version.HTTP_1_1);
        // Threads of the clients would keep it alive for a while.
        System.exit(0);
    }
}
